//! What every kernel library shares: status codes and messages, the ABI self-check, slabs and file mappings.
pub const c = @import("abi_table").c;
pub const status = @import("status.zig");
pub const slab = @import("slab.zig");

comptime {
    _ = status; // their exports belong to every library
    _ = slab;
}

test {
    _ = status;
    _ = slab;
}
