//! What every kernel library shares: status codes and messages, the ABI self-check, slabs and file mappings.
pub const c = @import("abi_table").c;
pub const status = @import("status.zig");
pub const slab = @import("slab.zig");

fn Missing(comptime name: []const u8) type {
    return struct {
        // the caller's arguments are left where the C convention put them
        fn answer() callconv(.c) c.kt_status_t {
            return status.unsupported("{s}: this library has no such op", .{name});
        }
    };
}

/// An answer for each op that a library lacks.
pub fn exportMissing(comptime names: []const []const u8) void {
    for (names) |name| {
        if (!@hasDecl(c, name)) @compileError(name ++ " is not in kt.h");
        @export(&Missing(name).answer, .{ .name = name });
    }
}

comptime {
    _ = status; // their exports belong to every library
    _ = slab;
}

test {
    _ = status;
    _ = slab;
}
