//! Points that graphs of two contexts meet at, in memory that both reach: this side signals some and spins for the others.
const std = @import("std");
const core = @import("core");
const ctxs = @import("ctx.zig");
const c = core.c;
const status = core.status;

/// Spins between looks at whether the launch goes on, and offers of the core: the thread waited for may be a neighbour.
const spins_between_looks = 64;
const spins_between_clocks = 1 << 14;

const Turns = struct {
    head: *c.kt_turns_t,
    turn: *c.kt_turn_t,

    fn of(handle: ?*c.kt_ctx_t, turns: ?*anyopaque, point: u32) ?Turns {
        const ctx = ctxs.from(handle) orelse return null;
        const address = @intFromPtr(turns orelse {
            _ = status.invalid("turns are NULL", .{});
            return null;
        });
        if (address % @alignOf(c.kt_turn_t) != 0) {
            _ = status.invalid("turns at {x} are not aligned", .{address});
            return null;
        }
        ctx.turns = @ptrFromInt(address);
        return .{ .head = @ptrFromInt(address), .turn = @ptrFromInt(address + @sizeOf(c.kt_turns_t) + point * @sizeOf(c.kt_turn_t)) };
    }

    /// Whether the point has come.
    fn await(self: Turns, timer: ?*std.time.Timer) bool {
        const launch = @atomicLoad(u32, &self.head.launch, .acquire);
        var spins: u32 = 0;
        while (@atomicLoad(u32, &self.turn.launch, .acquire) != launch) {
            std.atomic.spinLoopHint();
            spins +%= 1;
            if (spins % spins_between_looks != 0) continue;
            if (@atomicLoad(u32, &self.head.given_up, .monotonic) == launch) return false;
            std.Thread.yield() catch {};
            if (spins % spins_between_clocks != 0) continue;
            const clock = timer orelse continue;
            if (clock.read() < @as(u64, c.KT_TURN_SECONDS) * std.time.ns_per_s) continue;
            giveUp(self.head);
            return false;
        }
        return true;
    }
};

/// Nobody is to wait any more in the launch: this side has failed.
pub fn giveUp(head: *c.kt_turns_t) void {
    @atomicStore(u32, &head.given_up, @atomicLoad(u32, &head.launch, .monotonic), .release);
}

pub fn kt_turn_signal(handle: ?*c.kt_ctx_t, turns: ?*anyopaque, point: u32) status.Status {
    const self = Turns.of(handle, turns, point) orelse return c.KT_ERR_INVALID_ARG;
    @atomicStore(u32, &self.turn.launch, @atomicLoad(u32, &self.head.launch, .monotonic), .release);
    return c.KT_OK;
}

pub fn kt_turn_wait(handle: ?*c.kt_ctx_t, turns: ?*anyopaque, point: u32) status.Status {
    const self = Turns.of(handle, turns, point) orelse return c.KT_ERR_INVALID_ARG;
    var timer: ?std.time.Timer = std.time.Timer.start() catch null;
    const has_come = self.await(if (timer) |*clock| clock else null);
    self.turn.waited_ns = if (timer) |*clock| clock.read() else 0;
    if (has_come) return c.KT_OK;
    return status.fail(c.KT_ERR_CANCELLED, "point {d} of the launch has not come: the launch was given up", .{point});
}

test "a point that was signalled is waited for no longer, and a launch that is given up leaves nobody waiting" {
    const handle = try ctxs.ofOneThread();
    defer ctxs.kt_ctx_destroy(handle);
    const Memory = extern struct { head: c.kt_turns_t, turns: [2]c.kt_turn_t };
    var memory: Memory = std.mem.zeroes(Memory);
    memory.head.launch = 7;
    try std.testing.expectEqual(c.KT_OK, kt_turn_signal(handle, &memory, 1));
    try std.testing.expectEqual(@as(u32, 7), memory.turns[1].launch);
    try std.testing.expectEqual(c.KT_OK, kt_turn_wait(handle, &memory, 1));
    memory.head.given_up = 7;
    try std.testing.expectEqual(c.KT_ERR_CANCELLED, kt_turn_wait(handle, &memory, 0));
    try std.testing.expectEqual(c.KT_ERR_INVALID_ARG, kt_turn_wait(handle, null, 0));
    try std.testing.expectEqual(c.KT_ERR_INVALID_ARG, kt_turn_signal(null, &memory, 0));
}
