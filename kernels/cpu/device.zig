//! The CPU as a device: one, whose memory is the host's and whose ops are done when they return.
const std = @import("std");
const core = @import("core");
const ctx_of = @import("ctx.zig").from;
const ctxs = @import("ctx.zig");
const c = core.c;
const status = core.status;

const magic: u64 = 0x6b745f6576740001; // "kt_evt"

const Event = struct {
    magic: u64 = magic,
    recorded: ?std.time.Instant = null,
};

export fn kt_device_count(out_count: ?*u32) status.Status {
    const out = out_count orelse return status.invalid("out_count is NULL", .{});
    out.* = 1;
    return c.KT_OK;
}

export fn kt_device_query(index: u32, out: ?*c.kt_device_info_t) status.Status {
    const info = out orelse return status.invalid("out is NULL", .{});
    if (index != 0) return status.invalid("device {d}: there is 1", .{index});
    var cpu: c.kt_cpu_info_t = std.mem.zeroes(c.kt_cpu_info_t);
    const queried = ctxs.kt_cpu_query(&cpu);
    if (queried != c.KT_OK) return queried;
    info.memory_bytes = cpu.memory_bytes;
    info.memory_free_bytes = cpu.memory_free_bytes;
    info.compute_units = cpu.physical_cores;
    info.capability = 0;
    info.driver_version = 0;
    info.link_mbytes = 0;
    @memset(&info.name, 0);
    @memcpy(info.name[0..3], "CPU");
    return c.KT_OK;
}

export fn kt_buffer_create(handle: ?*c.kt_ctx_t, bytes: i64, out: ?*?*anyopaque) status.Status {
    _ = ctx_of(handle) orelse return c.KT_ERR_INVALID_ARG;
    return core.slab.kt_slab_create(bytes, c.KT_SLAB_HUGE_PAGES, out);
}

export fn kt_buffer_destroy(handle: ?*c.kt_ctx_t, buffer: ?*anyopaque, bytes: i64) void {
    _ = handle;
    core.slab.kt_slab_destroy(buffer, bytes);
}

pub fn kt_buffer_copy(handle: ?*c.kt_ctx_t, to: ?*anyopaque, from: ?*const anyopaque, bytes: i64) status.Status {
    _ = ctx_of(handle) orelse return c.KT_ERR_INVALID_ARG;
    if (bytes < 0) return status.invalid("a copy of {d} bytes", .{bytes});
    if (bytes == 0) return c.KT_OK;
    const target: [*]u8 = @ptrCast(to orelse return status.invalid("to is NULL", .{}));
    const source: [*]const u8 = @ptrCast(from orelse return status.invalid("from is NULL", .{}));
    @memmove(target[0..@intCast(bytes)], source[0..@intCast(bytes)]);
    return c.KT_OK;
}

export fn kt_ctx_synchronize(handle: ?*c.kt_ctx_t) status.Status {
    const ctx = ctx_of(handle) orelse return c.KT_ERR_INVALID_ARG;
    const started = ctx.started orelse return c.KT_OK;
    ctx.started = null;
    defer started.destroy();
    return started.report();
}

fn eventOf(handle: ?*c.kt_event_t) ?*Event {
    const event: *Event = @ptrCast(@alignCast(handle orelse {
        _ = status.invalid("event is NULL", .{});
        return null;
    }));
    if (event.magic == magic) return event;
    _ = status.invalid("not an event, or one that was destroyed", .{});
    return null;
}

export fn kt_event_create(handle: ?*c.kt_ctx_t, out: ?*?*c.kt_event_t) status.Status {
    const slot = out orelse return status.invalid("out is NULL", .{});
    slot.* = null;
    _ = ctx_of(handle) orelse return c.KT_ERR_INVALID_ARG;
    const event = ctxs.gpa.create(Event) catch return status.outOfMemory(@sizeOf(Event));
    event.* = .{};
    slot.* = @ptrCast(event);
    return c.KT_OK;
}

export fn kt_event_destroy(handle: ?*c.kt_event_t) void {
    const event = eventOf(handle) orelse return;
    event.magic = 0;
    ctxs.gpa.destroy(event);
}

export fn kt_event_record(handle: ?*c.kt_ctx_t, event: ?*c.kt_event_t) status.Status {
    _ = ctx_of(handle) orelse return c.KT_ERR_INVALID_ARG;
    const point = eventOf(event) orelse return c.KT_ERR_INVALID_ARG;
    point.recorded = std.time.Instant.now() catch return status.fail(c.KT_ERR_INTERNAL, "this system has no clock", .{});
    return c.KT_OK;
}

export fn kt_event_wait(handle: ?*c.kt_ctx_t, event: ?*c.kt_event_t) status.Status {
    _ = ctx_of(handle) orelse return c.KT_ERR_INVALID_ARG;
    _ = eventOf(event) orelse return c.KT_ERR_INVALID_ARG;
    return c.KT_OK;
}

export fn kt_event_elapsed(start: ?*c.kt_event_t, end: ?*c.kt_event_t, out_ms: ?*f64) status.Status {
    const out = out_ms orelse return status.invalid("out_ms is NULL", .{});
    const first = eventOf(start) orelse return c.KT_ERR_INVALID_ARG;
    const second = eventOf(end) orelse return c.KT_ERR_INVALID_ARG;
    const from = first.recorded orelse return status.invalid("start was not recorded", .{});
    const until = second.recorded orelse return status.invalid("end was not recorded", .{});
    out.* = @as(f64, @floatFromInt(until.since(from))) / std.time.ns_per_ms;
    return c.KT_OK;
}

test "events measure the time between them; a destroyed one is refused" {
    const handle = try ctxs.ofOneThread();
    defer ctxs.kt_ctx_destroy(handle);
    var events = [_]?*c.kt_event_t{ null, null };
    for (&events) |*event| try std.testing.expectEqual(c.KT_OK, kt_event_create(handle, event));
    var ms: f64 = -1;
    try std.testing.expectEqual(c.KT_ERR_INVALID_ARG, kt_event_elapsed(events[0], events[1], &ms));
    for (events) |event| try std.testing.expectEqual(c.KT_OK, kt_event_record(handle, event));
    try std.testing.expectEqual(c.KT_OK, kt_event_elapsed(events[0], events[1], &ms));
    try std.testing.expect(ms >= 0);
    try std.testing.expectEqual(c.KT_ERR_INVALID_ARG, kt_event_wait(handle, null));
    for (events) |event| kt_event_destroy(event);
}
