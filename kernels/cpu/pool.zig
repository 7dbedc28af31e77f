//! The thread pool: the caller and n-1 pinned workers run one function together. A region starts with one store and ends
//! with one counter; workers spin between regions and park after a while, so that an idle engine costs nothing.
//!
//! No one waits for a worker that has not come: work is claimed in chunks, a barrier waits for chunks and not for threads,
//! and the caller closes the region when its work is done. A core that another program keeps busy costs its share of the
//! speed, never a whole time slice a region.
const std = @import("std");
const builtin = @import("builtin");
const cpuid = @import("cpuid.zig");

/// Phases of one region: each has a claim counter and a count of finished chunks.
pub const max_phases = 16;

/// CPUs of one cache line's distance apart write nothing in common.
fn Padded(comptime T: type) type {
    return struct { value: T align(128) = undefined };
}

const Counter = Padded(std.atomic.Value(u32));
const no_phase = max_phases;

/// One thread's part in a region.
pub const Member = struct {
    pool: *Pool,
    index: u32,
    count: u32,
    phase: usize = no_phase,
    total: usize = 0,
    finished: u32 = 0,
    sense: u32 = 0,

    /// The next chunk of a phase, or null when all `total` are claimed. A phase is claimed until null, and by all members
    /// with the same total; phases of one region have different numbers.
    pub fn claim(self: *Member, phase: usize, total: usize) ?usize {
        if (self.count == 1) {
            const next = self.pool.single[phase];
            if (next >= total) return null;
            self.pool.single[phase] = @intCast(next + 1);
            return next;
        }
        if (self.phase != phase) {
            self.flush();
            self.phase = phase;
            self.total = total;
        } else self.finished += 1;
        const next = self.pool.counters[phase].value.fetchAdd(1, .monotonic);
        if (next < total) return next;
        self.flush();
        return null;
    }

    fn flush(self: *Member) void {
        if (self.finished == 0) return;
        _ = self.pool.done[self.phase].value.fetchAdd(self.finished, .release);
        self.finished = 0;
    }

    /// Waits until every chunk of the phase claimed last is finished; what they wrote is visible after.
    pub fn barrier(self: *Member) void {
        if (self.count == 1 or self.phase == no_phase) return;
        self.flush();
        const done = &self.pool.done[self.phase].value;
        var spins: u32 = 0;
        while (done.load(.acquire) < self.total) spinOnce(&spins);
    }

    /// Waits until every thread has come here. Only in regions of runAll.
    pub fn meet(self: *Member) void {
        if (self.count == 1) return;
        self.sense +%= 1;
        const pool = self.pool;
        if (pool.arrived.value.fetchAdd(1, .acq_rel) == self.count - 1) {
            pool.arrived.value.store(0, .monotonic);
            pool.released.value.store(self.sense, .release);
            return;
        }
        var spins: u32 = 0;
        while (pool.released.value.load(.acquire) != self.sense) spinOnce(&spins);
    }
};

/// Spins, and gives the core away now and then: the thread waited for may need it.
fn spinOnce(spins: *u32) void {
    std.atomic.spinLoopHint();
    spins.* +%= 1;
    if (spins.* % 16384 == 0) std.Thread.yield() catch {};
}

const Body = *const fn (context: *anyopaque, member: *Member) void;

/// The gate of a region: its generation, whether it is closed, and how many workers are inside.
const closed: u64 = 1 << 31;

pub const Pool = struct {
    threads: []std.Thread,
    num_threads: u32,
    spin_ns: u64,
    body: Body,
    context: *anyopaque,
    single: [max_phases]u32,
    generation: Counter,
    gate: Padded(std.atomic.Value(u64)),
    parked: Counter,
    arrived: Counter,
    released: Counter,
    counters: [max_phases]Counter,
    done: [max_phases]Counter,
    stopping: bool,
    /// Cores of the creating thread before it was pinned.
    before_pin: ?cpuid.Affinity = null,

    pub fn create(gpa: std.mem.Allocator, num_threads: u32, spin_us: u32, pin: ?[]const u32) !*Pool {
        std.debug.assert(num_threads >= 1);
        const self = try gpa.create(Pool);
        errdefer gpa.destroy(self);
        self.* = .{
            .threads = try gpa.alloc(std.Thread, num_threads - 1),
            .num_threads = num_threads,
            .spin_ns = @as(u64, spin_us) * 1000,
            .body = undefined,
            .context = undefined,
            .single = undefined,
            .generation = .{ .value = .init(0) },
            .gate = .{ .value = .init(closed) },
            .parked = .{ .value = .init(0) },
            .arrived = .{ .value = .init(0) },
            .released = .{ .value = .init(0) },
            .counters = undefined,
            .done = undefined,
            .stopping = false,
        };
        errdefer gpa.free(self.threads);
        if (pin) |order| {
            self.before_pin = cpuid.threadAffinity();
            pinSelf(order[0]);
        }
        for (self.threads, 1..) |*thread, index| {
            const cpu: ?u32 = if (pin) |order| order[index % order.len] else null;
            thread.* = std.Thread.spawn(.{ .stack_size = 1 << 20 }, worker, .{ self, @as(u32, @intCast(index)), cpu }) catch |err| {
                self.stop(index - 1);
                return err;
            };
        }
        return self;
    }

    /// Called by the thread that created the pool, which gets back the cores it had.
    pub fn destroy(self: *Pool, gpa: std.mem.Allocator) void {
        self.stop(self.threads.len);
        if (self.before_pin) |mask| cpuid.setThreadAffinity(mask);
        gpa.free(self.threads);
        gpa.destroy(self);
    }

    fn stop(self: *Pool, started: usize) void {
        self.stopping = true;
        self.announce(self.generation.value.raw +% 1);
        for (self.threads[0..started]) |thread| thread.join();
    }

    /// Runs body(context, member) on the caller and on every worker that comes before the work is done.
    pub fn run(self: *Pool, context: anytype, comptime body: fn (@TypeOf(context), *Member) void) void {
        var member: Member = .{ .pool = self, .index = 0, .count = self.num_threads };
        if (self.num_threads == 1) {
            @memset(&self.single, 0);
            return body(context, &member);
        }
        self.open(context, body);
        body(context, &member);
        _ = self.gate.value.fetchOr(closed, .acq_rel);
        var spins: u32 = 0;
        while (self.gate.value.load(.acquire) & (closed - 1) != 0) spinOnce(&spins);
    }

    /// Runs body(context, member) on every thread; members may meet().
    pub fn runAll(self: *Pool, context: anytype, comptime body: fn (@TypeOf(context), *Member) void) void {
        const Both = struct {
            context: @TypeOf(context),
            fn call(both: *const @This(), member: *Member) void {
                member.sense = member.pool.released.value.raw;
                member.meet();
                body(both.context, member);
                member.meet();
            }
        };
        const both: Both = .{ .context = context };
        self.run(&both, Both.call);
    }

    fn open(self: *Pool, context: anytype, comptime body: fn (@TypeOf(context), *Member) void) void {
        const Context = @TypeOf(context);
        const Erased = struct {
            fn call(erased: *anyopaque, member: *Member) void {
                const typed: Context = @ptrCast(@alignCast(erased));
                body(typed, member);
            }
        };
        for (&self.counters, &self.done) |*counter, *done| {
            counter.value.store(0, .monotonic);
            done.value.store(0, .monotonic);
        }
        self.body = Erased.call;
        self.context = @ptrCast(@constCast(context));
        const next = self.generation.value.raw +% 1;
        self.gate.value.store(@as(u64, next) << 32, .release);
        self.announce(next);
    }

    fn announce(self: *Pool, next: u32) void {
        self.generation.value.store(next, .seq_cst);
        if (self.parked.value.load(.seq_cst) > 0) std.Thread.Futex.wake(&self.generation.value, std.math.maxInt(u32));
    }

    /// Counts the worker in, unless the region has been closed.
    fn enter(self: *Pool, generation: u32) bool {
        var gate = self.gate.value.load(.acquire);
        while (gate & closed == 0 and gate >> 32 == generation) {
            gate = self.gate.value.cmpxchgWeak(gate, gate + 1, .acq_rel, .acquire) orelse return true;
        }
        return false;
    }

    fn worker(self: *Pool, index: u32, cpu: ?u32) void {
        if (cpu) |number| pinSelf(number);
        var seen: u32 = 0;
        while (true) {
            seen = self.waitChange(seen);
            if (self.stopping) return;
            if (!self.enter(seen)) continue;
            var member: Member = .{ .pool = self, .index = index, .count = self.num_threads };
            self.body(self.context, &member);
            _ = self.gate.value.fetchSub(1, .release);
        }
    }

    fn waitChange(self: *Pool, seen: u32) u32 {
        var spins: u32 = 0;
        var timer: ?std.time.Timer = null;
        while (true) {
            const now = self.generation.value.load(.acquire);
            if (now != seen) return now;
            std.atomic.spinLoopHint();
            spins +%= 1;
            if (spins % 1024 != 0) continue;
            if (timer) |*running| {
                if (running.read() >= self.spin_ns) self.park(seen);
            } else {
                timer = std.time.Timer.start() catch null;
                if (timer == null) self.park(seen);
            }
        }
    }

    fn park(self: *Pool, seen: u32) void {
        _ = self.parked.value.fetchAdd(1, .seq_cst);
        std.Thread.Futex.wait(&self.generation.value, seen);
        _ = self.parked.value.fetchSub(1, .seq_cst);
    }
};

fn pinSelf(cpu: u32) void {
    if (builtin.os.tag != .linux) return;
    var set = std.mem.zeroes(cpuid.Affinity);
    const word = @bitSizeOf(usize);
    set[cpu / word] |= @as(usize, 1) << @intCast(cpu % word);
    cpuid.setThreadAffinity(set);
}

const Sum = struct {
    total: std.atomic.Value(u64) = .init(0),
    seen_late: std.atomic.Value(bool) = .init(false),
    marks: [1000]u8 = [_]u8{0} ** 1000,

    fn body(self: *Sum, member: *Member) void {
        while (member.claim(0, 1000)) |i| {
            _ = self.total.fetchAdd(i, .monotonic);
            self.marks[i] = 1;
        }
        member.barrier();
        for (self.marks) |mark| if (mark != 1) self.seen_late.store(true, .monotonic);
        while (member.claim(1, 10)) |i| _ = self.total.fetchAdd(i, .monotonic);
        member.barrier();
        while (member.claim(2, 3)) |i| _ = self.total.fetchAdd(i, .monotonic);
    }

    fn together(self: *Sum, member: *Member) void {
        self.marks[member.index] = 1;
        member.meet();
        for (self.marks[0..member.count]) |mark| if (mark != 1) self.seen_late.store(true, .monotonic);
    }
};

test "every chunk is claimed once, barriers hold, over many regions and parked workers" {
    for ([_]u32{ 1, 2, 3, 5 }) |threads| {
        const pool = try Pool.create(std.testing.allocator, threads, 50, null);
        defer pool.destroy(std.testing.allocator);
        for (0..500) |round| {
            var sum: Sum = .{};
            pool.run(&sum, Sum.body);
            try std.testing.expectEqual(@as(u64, 499_500 + 45 + 3), sum.total.raw);
            try std.testing.expect(!sum.seen_late.raw);
            if (round % 50 == 0) {
                var all: Sum = .{};
                pool.runAll(&all, Sum.together);
                try std.testing.expect(!all.seen_late.raw);
                std.Thread.sleep(2 * std.time.ns_per_ms);
            }
        }
    }
}

test "a pinned pool gives its creator the cores back, and hides none from the next" {
    if (builtin.os.tag != .linux) return error.SkipZigTest;
    const gpa = std.testing.allocator;
    const found = try cpuid.cores(gpa);
    defer gpa.free(found.order);
    const before = cpuid.threadAffinity().?;
    const pool = try Pool.create(gpa, 1, 100, found.order);
    const pinned = try cpuid.cores(gpa);
    defer gpa.free(pinned.order);
    try std.testing.expectEqualSlices(u32, found.order, pinned.order);
    pool.destroy(gpa);
    try std.testing.expectEqual(before, cpuid.threadAffinity().?);
}
