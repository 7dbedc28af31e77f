//! The tokens of a step grouped by the experts they chose, and the lists of tasks over (expert, tokens, rows).
const std = @import("std");

/// Tokens of one tile of activations.
pub const full_tile = 8;
/// The same for the tile instructions.
pub const bf16_tile = 16;
/// Tokens that one task takes at most: their activations stay in the second cache while rows pass.
const max_task_tokens = 256;

/// An expert that some tokens chose: its pairs (token, choice) are neighbours in the pair order.
pub const Active = struct {
    expert: u32,
    first_pair: u32,
    pairs: u32,
    /// Slots of tiles of all active experts before this one; pair p of this expert is in slot first_slot + p.
    first_slot: u32,
    /// Slots in tiles of `tile` tokens, full_tile or bf16_tile; those after are in one tile of rest_tile tokens.
    full: u32,
    rest_tile: u32,
    tile: u32,
    token_tasks: u32,
    /// Tasks of all active experts before this one.
    first_gate_up: u32 = 0,
    first_down: u32 = 0,

    pub fn slots(self: Active) u32 {
        return self.full + self.rest_tile;
    }

    /// The tokens of one of its token_tasks.
    pub fn tokens(self: Active, index: usize) [2]usize {
        return .{ index * max_task_tokens, @min(self.pairs, (index + 1) * max_task_tokens) };
    }
};

/// Tokens of the largest task of so many pairs, unused slots of their last tile included.
pub fn taskTokens(pairs: usize) usize {
    return @min(std.mem.alignForward(usize, pairs, bf16_tile), max_task_tokens);
}

/// An upper bound of the slots that the tiles of so many pairs have, of which each expert of bf16 tiles has at least `least`.
pub fn slotsBound(pairs: usize, least: usize) usize {
    return pairs * if (least < bf16_tile / 2) bf16_tile else @as(usize, 2);
}

/// Rows of a task of about `bytes` of weights, in whole `unit`s, little enough that there are tasks for so many threads.
pub fn rowsPerTask(rows: usize, unit: usize, bytes_per_row: usize, bytes: usize, active: usize, threads: usize) usize {
    const units = (rows + unit - 1) / unit;
    const wanted = bytes / @max(1, bytes_per_row * unit);
    const shared = units * active / (8 * threads);
    return unit * std.math.clamp(@min(wanted, shared), 1, units);
}

/// Pair -> its token * k + choice, and back.
pub const Order = struct {
    pair_choice: []u32,
    choice_pair: []u32,
};

/// Groups the choices by expert, by counting. Experts of `least_bf16` pairs and more have bf16 tiles. Tiles that are not full
/// are kept apart where `split` says that it pays.
pub fn group(ids: []const i32, active: []Active, order: Order, counts: []u32, split: bool, least_bf16: usize) []Active {
    @memset(counts, 0);
    for (ids) |id| counts[@intCast(id)] += 1;
    var num_active: usize = 0;
    var next: u32 = 0;
    var slot: u32 = 0;
    for (counts, 0..) |*count, expert| {
        const pairs = count.*;
        const bf16 = pairs >= least_bf16;
        count.* = next; // from here on: the next free pair of the expert
        if (pairs == 0) continue;
        var full = pairs / full_tile * full_tile;
        var rest = pairs - full;
        if (bf16) {
            full = std.mem.alignForward(u32, pairs, bf16_tile);
            rest = 0;
        } else if (rest > full_tile / 2 or (full > 0 and rest > 0 and !split)) {
            full += full_tile;
            rest = 0;
        }
        const e: Active = .{
            .expert = @intCast(expert),
            .first_pair = next,
            .pairs = pairs,
            .first_slot = slot,
            .full = full,
            .rest_tile = if (rest == 3) 4 else rest,
            .tile = if (bf16) bf16_tile else full_tile,
            .token_tasks = (pairs + max_task_tokens - 1) / max_task_tokens,
        };
        active[num_active] = e;
        num_active += 1;
        next += pairs;
        slot += e.slots();
    }
    for (ids, 0..) |id, choice| {
        const pair = counts[@intCast(id)];
        counts[@intCast(id)] += 1;
        order.pair_choice[pair] = @intCast(choice);
        order.choice_pair[choice] = pair;
    }
    return active[0..num_active];
}

/// The expert of a claimed task; `field` is one of its first_*.
pub fn find(active: []const Active, task: usize, comptime field: []const u8) usize {
    var low: usize = 0;
    var high: usize = active.len;
    while (high - low > 1) {
        const middle = (low + high) / 2;
        if (@field(active[middle], field) <= task) low = middle else high = middle;
    }
    return low;
}

test "pairs keep the tokens' order, slots fit their bound" {
    var prng = std.Random.DefaultPrng.init(7);
    const random = prng.random();
    for ([_]usize{ 1, 3, 40, 300 }) |tokens| {
        const k = 4;
        var ids: [300 * k]i32 = undefined;
        for (ids[0 .. tokens * k]) |*id| id.* = random.intRangeLessThan(i32, 0, 10);
        var active: [10]Active = undefined;
        var pair_choice: [300 * k]u32 = undefined;
        var choice_pair: [300 * k]u32 = undefined;
        var counts: [10]u32 = undefined;
        for ([_]bool{ false, true }) |split| for ([_]usize{ 1, 8, 1000 }) |least| {
            const found = group(ids[0 .. tokens * k], &active, .{ .pair_choice = &pair_choice, .choice_pair = &choice_pair }, &counts, split, least);
            var pairs: usize = 0;
            var slots: usize = 0;
            for (found) |e| {
                try std.testing.expectEqual(pairs, e.first_pair);
                try std.testing.expectEqual(slots, e.first_slot);
                try std.testing.expect(e.slots() >= e.pairs);
                for (0..e.pairs) |p| {
                    const choice = pair_choice[e.first_pair + p];
                    try std.testing.expectEqual(@as(i32, @intCast(e.expert)), ids[choice]);
                    try std.testing.expectEqual(@as(u32, @intCast(e.first_pair + p)), choice_pair[choice]);
                    if (p > 0) try std.testing.expect(choice > pair_choice[e.first_pair + p - 1]);
                }
                pairs += e.pairs;
                slots += e.slots();
            }
            try std.testing.expectEqual(tokens * k, pairs);
            try std.testing.expect(slots <= slotsBound(pairs, least));
        };
    }
}
