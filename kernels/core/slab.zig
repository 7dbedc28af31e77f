//! Aligned zeroed memory and read-only file mappings.
const std = @import("std");
const builtin = @import("builtin");
const status = @import("status.zig");
const c = @import("abi_table").c;

const alignment = 64;
const huge_page = 2 * 1024 * 1024;

/// How a library with devices page-locks host memory for them; without one all memory is the device's own.
pub const Pinning = struct {
    pin: *const fn (data: *anyopaque, bytes: usize) status.Status,
    unpin: *const fn (data: *anyopaque) void,
    /// Where memory can be the devices' from the start only: takes zeroed memory, and gives it back, or answers false for any other.
    create: ?*const fn (bytes: usize, out: *?*anyopaque) status.Status = null,
    destroy: ?*const fn (data: *anyopaque) bool = null,
};
const root = @import("root");
const pinning: ?Pinning = if (@hasDecl(root, "pinning")) root.pinning else null;

fn slabAlignment(bytes: i64) usize {
    return if (bytes >= huge_page) huge_page else alignment;
}

fn alignedLen(bytes: i64) usize {
    return std.mem.alignForward(usize, @intCast(bytes), slabAlignment(bytes));
}

pub export fn kt_slab_create(bytes: i64, flags: u32, out: ?*?*anyopaque) status.Status {
    const slot = out orelse return status.invalid("out is NULL", .{});
    if (bytes <= 0) {
        slot.* = null;
        return status.invalid("slab of {d} bytes", .{bytes});
    }
    if (flags & c.KT_SLAB_PINNED != 0) if (slot.*) |given| {
        const devices = pinning orelse return c.KT_OK;
        const pinned = devices.pin(given, @intCast(bytes));
        if (pinned != c.KT_OK) slot.* = null;
        return pinned;
    };
    slot.* = null;
    const len = alignedLen(bytes);
    if (flags & c.KT_SLAB_PINNED != 0) if (pinning) |devices| if (devices.create) |create| return create(len, slot);
    if (builtin.os.tag == .windows) {
        const data = std.heap.page_allocator.alignedAlloc(u8, .fromByteUnits(alignment), len) catch return status.outOfMemory(bytes);
        @memset(data, 0);
        slot.* = data.ptr;
        return c.KT_OK;
    }
    // A mapping is zero and its pages are placed on the node of the thread that touches them first.
    const mapped = std.posix.mmap(null, len + slabAlignment(bytes), std.posix.PROT.READ | std.posix.PROT.WRITE, .{ .TYPE = .PRIVATE, .ANONYMOUS = true }, -1, 0) catch
        return status.outOfMemory(bytes);
    const start = std.mem.alignForward(usize, @intFromPtr(mapped.ptr), slabAlignment(bytes));
    const head = start - @intFromPtr(mapped.ptr);
    const tail = mapped.len - head - len;
    if (head > 0) std.posix.munmap(@alignCast(mapped[0..head]));
    if (tail > 0) std.posix.munmap(@alignCast(mapped[head + len ..][0..tail]));
    if (flags & c.KT_SLAB_HUGE_PAGES != 0 and builtin.os.tag == .linux) {
        std.posix.madvise(@ptrFromInt(start), len, std.os.linux.MADV.HUGEPAGE) catch {}; // small pages work too
    }
    if (flags & c.KT_SLAB_PINNED != 0) if (pinning) |devices| {
        const pinned = devices.pin(@ptrFromInt(start), len);
        if (pinned != c.KT_OK) {
            kt_slab_destroy(@ptrFromInt(start), bytes);
            return pinned;
        }
    };
    slot.* = @ptrFromInt(start);
    return c.KT_OK;
}

pub export fn kt_slab_destroy(slab: ?*anyopaque, bytes: i64) void {
    const data = slab orelse return;
    if (bytes < 0) return;
    if (pinning) |devices| {
        if (devices.destroy) |destroy| if (destroy(data)) return;
        devices.unpin(data);
    }
    if (bytes == 0) return;
    const many: [*]align(std.heap.page_size_min) u8 = @ptrCast(@alignCast(data));
    if (builtin.os.tag == .windows) {
        std.heap.page_allocator.rawFree(many[0..alignedLen(bytes)], .fromByteUnits(alignment), @returnAddress());
    } else {
        std.posix.munmap(many[0..std.mem.alignForward(usize, alignedLen(bytes), std.heap.page_size_min)]);
    }
}

export fn kt_file_map(path: ?[*:0]const u8, out: ?*c.kt_file_map_t) status.Status {
    const name = std.mem.span(path orelse return status.invalid("path is NULL", .{}));
    const result = out orelse return status.invalid("out is NULL", .{});
    result.* = .{ .data = null, .size = 0 };
    if (builtin.os.tag == .windows) return mapWindows(name, result);
    const file = std.fs.cwd().openFile(name, .{}) catch |err| return status.invalid("{s}", .{fileError(err)});
    defer file.close();
    const stat = file.stat() catch |err| return status.invalid("{s}", .{fileError(err)});
    if (stat.kind != .file) return status.invalid("not a regular file", .{});
    if (stat.size == 0) return status.invalid("the file is empty", .{});
    const data = std.posix.mmap(null, @intCast(stat.size), std.posix.PROT.READ, .{ .TYPE = .SHARED }, file.handle, 0) catch |err|
        return status.invalid("cannot be mapped ({s})", .{@errorName(err)});
    result.* = .{ .data = data.ptr, .size = @intCast(stat.size) };
    return c.KT_OK;
}

/// Windows has no mmap in std.posix; the file is read into memory.
fn mapWindows(name: []const u8, result: *c.kt_file_map_t) status.Status {
    const file = std.fs.cwd().openFile(name, .{}) catch |err| return status.invalid("{s}", .{fileError(err)});
    defer file.close();
    const size = file.getEndPos() catch |err| return status.invalid("{s}", .{fileError(err)});
    if (size == 0) return status.invalid("the file is empty", .{});
    const data = std.heap.page_allocator.alloc(u8, @intCast(size)) catch return status.outOfMemory(@intCast(size));
    const got = file.readAll(data) catch |err| return status.invalid("{s}", .{fileError(err)});
    result.* = .{ .data = data.ptr, .size = @intCast(got) };
    return c.KT_OK;
}

fn fileError(err: anyerror) []const u8 {
    return switch (err) {
        error.FileNotFound => "no such file",
        error.AccessDenied, error.PermissionDenied => "permission denied",
        error.IsDir => "is a folder",
        else => @errorName(err),
    };
}

export fn kt_file_unmap(data: ?*anyopaque, size: i64) status.Status {
    const start = data orelse return status.invalid("data is NULL", .{});
    if (size <= 0) return status.invalid("size is {d}", .{size});
    const many: [*]align(std.heap.page_size_min) u8 = @ptrCast(@alignCast(start));
    if (builtin.os.tag == .windows) {
        std.heap.page_allocator.free(many[0..@intCast(size)]);
    } else {
        std.posix.munmap(many[0..@intCast(size)]);
    }
    return c.KT_OK;
}

export fn kt_file_advise(data: ?*anyopaque, size: i64, advice: u32) status.Status {
    const start = data orelse return status.invalid("data is NULL", .{});
    if (size <= 0) return status.invalid("size is {d}", .{size});
    if (advice != c.KT_ADVISE_WILLNEED and advice != c.KT_ADVISE_DONTNEED) return status.invalid("advice is {d}", .{advice});
    if (builtin.os.tag == .windows) return c.KT_OK;
    const page = std.heap.page_size_min;
    const first = std.mem.alignBackward(usize, @intFromPtr(start), page);
    const end = @intFromPtr(start) + @as(usize, @intCast(size));
    const code: u32 = if (advice == c.KT_ADVISE_WILLNEED) std.posix.MADV.WILLNEED else std.posix.MADV.DONTNEED;
    std.posix.madvise(@ptrFromInt(first), end - first, code) catch |err| return status.invalid("madvise: {s}", .{@errorName(err)});
    return c.KT_OK;
}

test "slabs are zeroed, aligned and refuse nonsense" {
    var out: ?*anyopaque = null;
    for ([_]i64{ 1, 4096, huge_page + 1 }) |bytes| {
        try std.testing.expectEqual(c.KT_OK, kt_slab_create(bytes, c.KT_SLAB_HUGE_PAGES, &out));
        try std.testing.expectEqual(@as(usize, 0), @intFromPtr(out.?) % alignment);
        const data: [*]u8 = @ptrCast(out.?);
        try std.testing.expectEqual(@as(u8, 0), data[@intCast(bytes - 1)]);
        data[@intCast(bytes - 1)] = 1;
        kt_slab_destroy(out, bytes);
    }
    try std.testing.expectEqual(c.KT_ERR_INVALID_ARG, kt_slab_create(0, 0, &out));
    try std.testing.expectEqual(c.KT_ERR_INVALID_ARG, kt_slab_create(8, 0, null));
    try std.testing.expectEqual(c.KT_ERR_OUT_OF_MEMORY, kt_slab_create(1 << 56, 0, &out));
}

test "mapping a missing file says so" {
    var map: c.kt_file_map_t = undefined;
    try std.testing.expectEqual(c.KT_ERR_INVALID_ARG, kt_file_map("/nonexistent/file", &map));
    try std.testing.expectEqualStrings("no such file", std.mem.span(@as([*:0]const u8, @extern(*const fn () callconv(.c) [*:0]const u8, .{ .name = "kt_last_error" })())));
}
