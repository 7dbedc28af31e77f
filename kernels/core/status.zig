//! Status codes, the thread's last error, and the exports of the ABI self-check.
const std = @import("std");
const table = @import("abi_table");
const c = table.c;

pub const Status = c.kt_status_t;

threadlocal var message: [512]u8 = [_]u8{0} ** 512;

/// Records what went wrong for kt_last_error() and returns `code`. Text longer than the buffer is cut.
pub fn fail(code: Status, comptime fmt: []const u8, args: anytype) Status {
    std.debug.assert(code < 0);
    const text = std.fmt.bufPrint(message[0 .. message.len - 1], fmt, args) catch message[0 .. message.len - 1];
    message[text.len] = 0;
    return code;
}

pub fn invalid(comptime fmt: []const u8, args: anytype) Status {
    return fail(c.KT_ERR_INVALID_ARG, fmt, args);
}

pub fn unsupported(comptime fmt: []const u8, args: anytype) Status {
    return fail(c.KT_ERR_UNSUPPORTED, fmt, args);
}

pub fn outOfMemory(bytes: i64) Status {
    return fail(c.KT_ERR_OUT_OF_MEMORY, "cannot allocate {d} bytes", .{bytes});
}

/// For code of other languages within a library.
fn failWith(code: Status, text: [*:0]const u8) callconv(.c) Status {
    return fail(code, "{s}", .{std.mem.span(text)});
}

comptime {
    @export(&failWith, .{ .name = "kt_core_fail", .visibility = .hidden });
}

export fn kt_abi_version() u32 {
    return (c.KT_ABI_MAJOR << 16) | c.KT_ABI_MINOR;
}

export fn kt_abi_hash() u64 {
    return table.hash;
}

pub export fn kt_last_error() [*:0]const u8 {
    return @ptrCast(&message);
}

test "the last error is the thread's own and is cut to the buffer" {
    try std.testing.expectEqual(c.KT_ERR_INVALID_ARG, invalid("weight [{d}]", .{3}));
    try std.testing.expectEqualStrings("weight [3]", std.mem.span(kt_last_error()));
    const long = "x" ** 1000;
    _ = invalid("{s}", .{long});
    try std.testing.expectEqual(@as(usize, 511), std.mem.span(kt_last_error()).len);
}
