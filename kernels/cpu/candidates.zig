//! Sorting of the sampler's candidates: keys whose high word ascends as the logit descends, with the token id below.
const std = @import("std");

const digit_bits = 11;
const digits = 3; // 33 bits cover the high word
const buckets = 1 << digit_bits;
/// From this many on, three passes over all keys beat comparing them.
const radix_from = 512;

/// Sorts `keys`, whose ids must ascend; `other` is as long. Returns the one of the two slices that holds the result.
pub fn sort(keys: []u64, other: []u64) []u64 {
    if (keys.len < radix_from) {
        std.sort.pdq(u64, keys, {}, std.sort.asc(u64));
        return keys;
    }
    var from = keys;
    var to = other[0..keys.len];
    inline for (0..digits) |digit| {
        const shift = 32 + digit * digit_bits;
        var starts = [_]u32{0} ** buckets;
        for (from) |key| starts[(key >> shift) % buckets] += 1;
        const in_one = starts[(from[0] >> shift) % buckets] == from.len;
        if (!in_one) {
            var sum: u32 = 0;
            for (&starts) |*start| {
                const count = start.*;
                start.* = sum;
                sum += count;
            }
            for (from) |key| {
                const start = &starts[(key >> shift) % buckets];
                to[start.*] = key;
                start.* += 1;
            }
            std.mem.swap([]u64, &from, &to);
        }
    }
    return from;
}

test "keys are sorted by value, then by id, below and above the radix bound" {
    var random = std.Random.DefaultPrng.init(7);
    var keys: [3000]u64 = undefined;
    var other: [3000]u64 = undefined;
    for ([_]usize{ 1, 2, 511, 512, 3000 }) |n| {
        for ([_]u32{ 0, 3, std.math.maxInt(u32) }) |spread| {
            for (keys[0..n], 0..) |*key, id| {
                key.* = @as(u64, random.random().intRangeAtMost(u32, 0, spread)) << 32 | id;
            }
            const sorted = sort(keys[0..n], other[0..n]);
            for (sorted[1..], sorted[0 .. n - 1]) |next, key| try std.testing.expect(key < next);
        }
    }
}
