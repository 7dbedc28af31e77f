//! Prints src/native/abi.generated.ts. Run by `zig build abi`.
const std = @import("std");
const table = @import("abi_table");

pub fn main() !void {
    const header = "// Generated from kernels/include/kt.h by `zig build abi`. Do not edit.\n\n";
    const hash = std.fmt.comptimePrint("\nexport const KT_ABI_HASH = 0x{x}n\n", .{table.hash});
    try std.fs.File.stdout().writeAll(header ++ table.text ++ hash);
}
