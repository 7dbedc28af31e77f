//! Weight formats in double precision, written from their definitions (kt_quant.h) and not from the kernels.
const std = @import("std");
const support = @import("support.zig");
const c = support.c;

pub const Format = struct { name: []const u8, dtype: u32, values: usize, bytes: usize, packs: bool };

pub const quantised = [_]Format{
    .{ .name = "Q4_0", .dtype = c.KT_Q4_0, .values = 32, .bytes = 18, .packs = true },
    .{ .name = "Q4_1", .dtype = c.KT_Q4_1, .values = 32, .bytes = 20, .packs = true },
    .{ .name = "Q5_0", .dtype = c.KT_Q5_0, .values = 32, .bytes = 22, .packs = true },
    .{ .name = "Q8_0", .dtype = c.KT_Q8_0, .values = 32, .bytes = 34, .packs = true },
    .{ .name = "Q3_K", .dtype = c.KT_Q3_K, .values = 256, .bytes = 110, .packs = true },
    .{ .name = "Q4_K", .dtype = c.KT_Q4_K, .values = 256, .bytes = 144, .packs = true },
    .{ .name = "Q6_K", .dtype = c.KT_Q6_K, .values = 256, .bytes = 210, .packs = true },
    .{ .name = "IQ4_NL", .dtype = c.KT_IQ4_NL, .values = 32, .bytes = 18, .packs = true },
};

/// Random blocks: every code is as likely, scales are small f16 numbers of either sign.
pub fn randomBlocks(random: *support.Random, f: Format, count: usize) ![]u8 {
    const data = try support.gpa.alloc(u8, count * f.bytes);
    for (data) |*b| b.* = random.byte();
    for (0..count) |i| {
        const block = data[i * f.bytes ..][0..f.bytes];
        for (scaleOffsets(f.dtype)) |at| {
            const scale: f16 = @floatCast(random.normal() * 0.01);
            std.mem.writeInt(u16, block[at..][0..2], @bitCast(scale), .little);
        }
    }
    return data;
}

fn scaleOffsets(dtype: u32) []const usize {
    return switch (dtype) {
        c.KT_Q4_1, c.KT_Q4_K => &.{ 0, 2 },
        c.KT_Q3_K => &.{108},
        c.KT_Q6_K => &.{208},
        else => &.{0},
    };
}

fn half(bytes: []const u8, at: usize) f64 {
    return @as(f16, @bitCast(std.mem.readInt(u16, bytes[at..][0..2], .little)));
}

const iq4_values = [16]f64{ -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };

/// The low nibbles of 16 bytes, then the high ones.
fn nibble(qs: []const u8, i: usize) u8 {
    return if (i < 16) qs[i] & 15 else qs[i - 16] >> 4;
}

/// 6-bit scale and minimum of sub-block j of Q4_K, from 12 bytes.
fn scaleAndMinimum(s: []const u8, j: usize) struct { f64, f64 } {
    if (j < 4) return .{ @floatFromInt(s[j] & 63), @floatFromInt(s[j + 4] & 63) };
    const low = s[j + 4];
    return .{
        @floatFromInt((low & 15) | (s[j - 4] >> 6) << 4),
        @floatFromInt((low >> 4) | (s[j] >> 6) << 4),
    };
}

/// Value i of a block.
pub fn valueOf(dtype: u32, b: []const u8, i: usize) f64 {
    switch (dtype) {
        c.KT_Q4_0 => return half(b, 0) * (@as(f64, @floatFromInt(nibble(b[2..], i))) - 8),
        c.KT_Q4_1 => return half(b, 0) * @as(f64, @floatFromInt(nibble(b[4..], i))) + half(b, 2),
        c.KT_Q5_0 => {
            const bits = std.mem.readInt(u32, b[2..6], .little);
            const code = nibble(b[6..], i) | @as(u8, @intCast(bits >> @intCast(i) & 1)) << 4;
            return half(b, 0) * (@as(f64, @floatFromInt(code)) - 16);
        },
        c.KT_Q8_0 => return half(b, 0) * @as(f64, @floatFromInt(@as(i8, @bitCast(b[2 + i])))),
        c.KT_IQ4_NL => return half(b, 0) * iq4_values[nibble(b[2..], i)],
        c.KT_Q3_K => {
            // hmask 32, qs 64, scales 12, d
            const quarter = i % 128 / 32;
            const low = b[32 + i / 128 * 32 + i % 32] >> @intCast(2 * quarter) & 3;
            const high = b[i % 32] >> @intCast(i / 32) & 1;
            const s = b[96..108];
            const sub = i / 16;
            const low4 = if (sub < 8) s[sub] & 15 else s[sub - 8] >> 4;
            const high2 = s[8 + sub % 4] >> @intCast(2 * (sub / 4)) & 3;
            const scale = @as(f64, @floatFromInt(low4 | high2 << 4)) - 32;
            return half(b, 108) * scale * (@as(f64, @floatFromInt(low | high << 2)) - 4);
        },
        c.KT_Q4_K => {
            const scale, const minimum = scaleAndMinimum(b[4..16], i / 32);
            const byte = b[16 + i / 64 * 32 + i % 32];
            const code: f64 = @floatFromInt(if (i % 64 < 32) byte & 15 else byte >> 4);
            return half(b, 0) * scale * code - half(b, 2) * minimum;
        },
        c.KT_Q6_K => {
            // ql 128, qh 64, scales 16, d
            const in_half = i % 128;
            const low = b[i / 128 * 64 + in_half % 64];
            const nib = if (in_half < 64) low & 15 else low >> 4;
            const high = b[128 + i / 128 * 32 + in_half % 32] >> @intCast(2 * (in_half / 32)) & 3;
            const scale: f64 = @floatFromInt(@as(i8, @bitCast(b[192 + i / 16])));
            return half(b, 208) * scale * (@as(f64, @floatFromInt(nib | high << 4)) - 32);
        },
        else => unreachable,
    }
}

/// All values of a weight [rows, n].
pub fn values(f: Format, data: []const u8, count: usize) ![]f64 {
    const out = try support.gpa.alloc(f64, count);
    for (out, 0..) |*v, i| v.* = valueOf(f.dtype, data[i / f.values * f.bytes ..][0..f.bytes], i % f.values);
    return out;
}
