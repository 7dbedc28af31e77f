//! From how many tokens on a product is the tiles' and no longer the vector units': asked for once a process.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const c = core.c;
const isa = ctx_mod.isa;

const rows = 64;
const cols = 1024;
const tile = 8;
const candidates = [_]i32{ 8, 16, 24, 32, 48, 64 };
const most_tokens = 64;
const rounds = 5;

var once = std.once(measure);
var table: *const isa.kt_isa_table_t = undefined;

/// Sets the table's amx_tokens, where it has any and KT_AMX_TOKENS asks for tiles: a number, or "auto" for the one from which
/// on a few products of Q4_K are faster that way. They are not used unasked: with one scale per 256 columns the perplexity
/// of SmolLM2 Q4_1 is 2.6 % above the float one, where the int8 path may be 1 %.
pub fn chooseTokens(of: *const isa.kt_isa_table_t) void {
    if (of.amx_tokens == null) return;
    table = of;
    once.call();
}

fn measure() void {
    const gpa = ctx_mod.gpa;
    const tokens: *i32 = @ptrCast(table.amx_tokens.?);
    const text = std.process.getEnvVarOwned(gpa, "KT_AMX_TOKENS") catch return;
    defer gpa.free(text);
    if (std.mem.eql(u8, text, "auto")) {
        tokens.* = crossover(gpa, tokens) catch 32;
    } else if (std.fmt.parseInt(i32, text, 10)) |forced| {
        tokens.* = @max(1, forced);
    } else |_| {}
}

/// The least number of tokens from which on tiles were faster at every number measured.
fn crossover(gpa: std.mem.Allocator, tokens: *i32) !i32 {
    const block = 144; // bytes of 256 columns
    const weight = try gpa.alignedAlloc(u8, .@"64", rows * cols / 256 * block);
    defer gpa.free(weight);
    // no NaN, no infinity, no denormal: scales of 1/512 and any codes
    for (0..rows * cols / 256) |i| {
        const at = weight[i * block ..][0..block];
        for (at, 0..) |*byte, j| byte.* = @truncate(i * 89 + j * 57);
        std.mem.writeInt(u16, at[0..2], 0x1800, .little);
        std.mem.writeInt(u16, at[2..4], 0x1800, .little);
    }
    const tile_bytes: usize = cols / 32 * tile * @as(usize, @intCast(table.act_token_bytes));
    const acts = try gpa.alignedAlloc(u8, .@"64", most_tokens / tile * tile_bytes);
    defer gpa.free(acts);
    var x: [cols]f32 = undefined;
    for (&x, 0..) |*value, i| value.* = @floatFromInt(@as(i32, @intCast(i * 37 % 101)) - 50);
    for (0..most_tokens) |t| table.quantize_row.?(&x, cols, acts.ptr + t / tile * tile_bytes, tile, @intCast(t % tile));
    const out = try gpa.alloc(f32, most_tokens * rows);
    defer gpa.free(out);
    const scratch = try gpa.alignedAlloc(u8, .@"64", @intCast(table.matmul_scratch.?(cols)));
    defer gpa.free(scratch);
    var job = std.mem.zeroes(isa.kt_matmul_t);
    job.w = weight.ptr;
    job.row_stride = cols / 256 * block;
    job.rows = rows;
    job.cols = cols;
    job.dtype = c.KT_Q4_K;
    job.acts = acts.ptr;
    job.tile_bytes = @intCast(tile_bytes);
    job.tile_tokens = tile;
    job.out = out.ptr;
    job.out_stride = rows;
    var timer = try std.time.Timer.start();
    var least: i32 = std.math.maxInt(i32);
    var i = candidates.len;
    while (i > 0) {
        i -= 1;
        var best = [2]u64{ std.math.maxInt(u64), std.math.maxInt(u64) };
        for (0..rounds) |_| for (&best, [2]i32{ 1, std.math.maxInt(i32) }) |*shortest, from| {
            tokens.* = from;
            timer.reset();
            table.matmul.?(&job, 0, rows, 0, candidates[i], scratch.ptr);
            shortest.* = @min(shortest.*, timer.read());
        };
        if (best[0] >= best[1]) break;
        least = candidates[i];
    }
    return least;
}

test "a level without tiles has no number of tokens, one with them has" {
    chooseTokens(ctx_mod.tableOf(c.KT_ISA_SCALAR));
    const cpuid = @import("cpuid.zig");
    if (@import("builtin").cpu.arch != .x86_64) return;
    if (cpuid.isaMask() >> c.KT_ISA_AMX & 1 == 0) return error.SkipZigTest;
    const of = ctx_mod.tableOf(c.KT_ISA_AMX);
    chooseTokens(of);
    try std.testing.expect(@as(*i32, @ptrCast(of.amx_tokens.?)).* >= 1);
}
