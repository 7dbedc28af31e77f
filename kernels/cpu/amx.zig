//! From how many tokens on a product is the tiles' and no longer the vector units': measured once a process.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const c = core.c;
const isa = ctx_mod.isa;

const rows = 64;
const cols = 1024;
const tile = 8;
const tile_tokens: usize = isa.KT_TILE_TOKENS;
const candidates = [_]usize{ 8, 16, 24, 32, 48, 64 };
const most_tokens = 64;
const rounds = 5;
const never = std.math.maxInt(usize);

var once = std.once(choose);
var table: *const isa.kt_isa_table_t = undefined;
var least_tokens: usize = never;

/// Measures unless a context before has, or KT_AMX_TOKENS says the number.
pub fn chooseTokens(of: *const isa.kt_isa_table_t, fast: bool) void {
    if (of.tile_row == null or !fast) return;
    table = of;
    once.call();
}

pub fn leastTokens() usize {
    return least_tokens;
}

fn choose() void {
    const gpa = ctx_mod.gpa;
    if (std.process.getEnvVarOwned(gpa, "KT_AMX_TOKENS")) |text| {
        defer gpa.free(text);
        if (std.fmt.parseInt(usize, text, 10)) |forced| {
            least_tokens = @max(1, forced);
            return;
        } else |_| {}
    } else |_| {}
    least_tokens = crossover(gpa) catch 32;
}

/// The least number of tokens from which on tiles were faster at every number measured, with packed Q4_K.
fn crossover(gpa: std.mem.Allocator) !usize {
    const block = 144; // bytes of 256 columns
    const row_bytes = cols / 256 * block;
    const weight = try gpa.alignedAlloc(u8, .@"64", rows * row_bytes);
    defer gpa.free(weight);
    // no NaN, no infinity, no denormal: scales of 1/512 and any codes
    for (0..rows * cols / 256) |i| {
        const at = weight[i * block ..][0..block];
        for (at, 0..) |*byte, j| byte.* = @truncate(i * 89 + j * 57);
        std.mem.writeInt(u16, at[0..2], 0x1800, .little);
        std.mem.writeInt(u16, at[2..4], 0x1800, .little);
    }
    const per_block: usize = @intCast(table.row_block);
    const packed_bytes: usize = @intCast(table.packed_bytes.?(c.KT_Q4_K, rows, cols));
    const packed_weight = try gpa.alignedAlloc(u8, .@"64", packed_bytes);
    defer gpa.free(packed_weight);
    for (0..rows / per_block) |i|
        table.pack_rows.?(c.KT_Q4_K, weight.ptr + i * per_block * row_bytes, row_bytes, table.row_block, cols, packed_weight.ptr + i * (packed_bytes * per_block / rows));
    const int8_bytes: usize = cols / 32 * tile * @as(usize, @intCast(table.act_token_bytes));
    const bf16_bytes = cols * 2 * tile_tokens;
    const int8 = try gpa.alignedAlloc(u8, .@"64", most_tokens / tile * int8_bytes);
    defer gpa.free(int8);
    const bf16 = try gpa.alignedAlloc(u8, .@"64", most_tokens / tile_tokens * bf16_bytes);
    defer gpa.free(bf16);
    var x: [cols]f32 = undefined;
    for (&x, 0..) |*value, i| value.* = @floatFromInt(@as(i32, @intCast(i * 37 % 101)) - 50);
    for (0..most_tokens) |t| {
        table.quantize_row.?(&x, cols, int8.ptr + t / tile * int8_bytes, tile, @intCast(t % tile));
        table.tile_row.?(&x, cols, bf16.ptr + t / tile_tokens * bf16_bytes, @intCast(t % tile_tokens));
    }
    const out = try gpa.alloc(f32, most_tokens * rows);
    defer gpa.free(out);
    const scratch = try gpa.alignedAlloc(u8, .@"64", @intCast(table.matmul_scratch.?(cols)));
    defer gpa.free(scratch);
    var job = std.mem.zeroes(isa.kt_matmul_t);
    job.w = packed_weight.ptr;
    job.@"packed" = 1;
    job.rows = rows;
    job.cols = cols;
    job.dtype = c.KT_Q4_K;
    job.out = out.ptr;
    job.out_stride = rows;
    var jobs = [2]isa.kt_matmul_t{ job, job };
    jobs[0].acts = bf16.ptr;
    jobs[0].tile_bytes = bf16_bytes;
    jobs[0].tile_tokens = isa.KT_TILE_TOKENS;
    jobs[1].acts = int8.ptr;
    jobs[1].tile_bytes = @intCast(int8_bytes);
    jobs[1].tile_tokens = tile;
    var timer = try std.time.Timer.start();
    var least: usize = never;
    var i = candidates.len;
    while (i > 0) {
        i -= 1;
        var best = [2]u64{ std.math.maxInt(u64), std.math.maxInt(u64) };
        for (0..rounds) |_| for (&best, &jobs) |*shortest, *one| {
            timer.reset();
            table.matmul.?(one, 0, rows, 0, @intCast(candidates[i]), scratch.ptr);
            shortest.* = @min(shortest.*, timer.read());
        };
        if (best[0] >= best[1]) break;
        least = candidates[i];
    }
    return least;
}

test "a level without tiles has no number of tokens, one with them has" {
    chooseTokens(ctx_mod.tableOf(c.KT_ISA_SCALAR), true);
    const cpuid = @import("cpuid.zig");
    if (@import("builtin").cpu.arch != .x86_64) return;
    if (cpuid.isaMask() >> c.KT_ISA_AMX & 1 == 0) return error.SkipZigTest;
    const of = ctx_mod.tableOf(c.KT_ISA_AMX);
    chooseTokens(of, true);
    try std.testing.expect(leastTokens() >= 1);
}
