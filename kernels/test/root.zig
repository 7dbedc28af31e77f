//! Op tests that call the kernels through the C ABI alone, for machines that run no Bun: one level a run, the best of the
//! CPU or the one that KT_CPU_ISA names. KT_EXPECT_ISA says which it must be.
const std = @import("std");
const support = @import("support.zig");

test "the level is the best that this CPU runs" {
    const want = std.process.getEnvVarOwned(std.testing.allocator, "KT_EXPECT_ISA") catch return error.SkipZigTest;
    defer std.testing.allocator.free(want);
    try std.testing.expectEqualStrings(want, support.levelName(support.context()));
}

test {
    _ = @import("linear.zig");
    _ = @import("rows.zig");
    _ = @import("attention.zig");
    _ = @import("experts.zig");
}
