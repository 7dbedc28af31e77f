//! A histogram of one row of logits, for draws that its most probable tokens do not decide.
const std = @import("std");
const ctx_mod = @import("ctx.zig");
const candidates = @import("candidates.zig");
const logits_scan = @import("logits_scan.zig");
const Scan = logits_scan.Scan;
const Slot = logits_scan.Slot;
const widest = logits_scan.widest;

/// A row's weights summed over bins of equal width in the logit, so that places in the order of all tokens are found by
/// sorting one bin.
pub const Bins = struct {
    scan: *const Scan,
    row: usize,
    slot: *const Slot,
    max: f32,
    inv_temperature: f32,
    scale: f32,
    counts: [bin_count]u32,
    masses: [bin_count]f64,

    const bin_count = ctx_mod.isa.KT_SAMPLING_BINS;

    /// The first token, in the order of probability, with which
    pub const Rule = union(enum) {
        count: usize, // this many have come
        mass: f64, // this mass is reached
        beyond: f64, // this mass is exceeded
        weight: f32, // the weights are below this
    };
    pub const Place = struct { id: usize, before: f64, through: f64 };

    pub fn fill(self: *Bins, scan: *const Scan, row: usize, slot: *const Slot, max: f32, temperature: f32, inv_temperature: f32) void {
        const values = scan.logits.f32Row(row);
        const n: i64 = @intCast(scan.vocab);
        const range = max - scan.ctx.isa.lowest_above.?(values, n, max - widest * temperature);
        const scale = if (range > 0) (bin_count - 1) / range else 0;
        self.scan = scan;
        self.row = row;
        self.slot = slot;
        self.max = max;
        self.inv_temperature = inv_temperature;
        self.scale = if (std.math.isFinite(scale)) scale else 0;
        @memset(&self.counts, 0);
        @memset(&self.masses, 0);
        scan.ctx.isa.bin_weights.?(values, n, max, inv_temperature, self.scale, &self.counts, &self.masses);
    }

    pub fn total(self: *const Bins) f64 {
        var sum: f64 = 0;
        for (self.masses) |mass| sum += mass;
        return sum;
    }

    /// Where the rule first holds, or null.
    pub fn locate(self: *const Bins, rule: Rule) ?Place {
        var count: usize = 0;
        var mass: f64 = 0;
        for (0..bin_count) |bin| {
            if (self.counts[bin] == 0) continue;
            const bin_mass = self.masses[bin];
            const may_hold = switch (rule) {
                .count => |k| count + self.counts[bin] >= k,
                .mass, .beyond => |m| bin_mass > 0 and mass + bin_mass * (1 + 1e-9) >= m,
                .weight => |least| self.leastWeight(bin) < least,
            };
            if (may_hold) if (self.search(bin, rule, count, mass)) |place| return place;
            count += self.counts[bin];
            mass += bin_mass;
        }
        return null;
    }

    /// No weight of the bin is below this.
    pub fn leastWeight(self: *const Bins, bin: usize) f32 {
        if (self.scale == 0 or bin == bin_count - 1) return 0;
        const distance = @as(f32, @floatFromInt(bin + 1)) / self.scale * self.inv_temperature;
        return @exp(-1.001 * distance - 0.001);
    }

    /// The place within one bin, before which come `count` tokens of `mass`.
    pub fn search(self: *const Bins, bin: usize, rule: Rule, count: usize, mass: f64) ?Place {
        const isa = self.scan.ctx.isa;
        const values = self.scan.logits.f32Row(self.row);
        const n: usize = @intCast(isa.gather_bin.?(values, @intCast(self.scan.vocab), self.max, self.scale, @intCast(bin), 0, self.slot.keys.ptr));
        const keys = candidates.sort(self.slot.keys[0..n], self.slot.other);
        const weights = self.slot.weights[0..n];
        isa.key_values.?(keys.ptr, weights.ptr, @intCast(n));
        isa.weight_row.?(weights.ptr, self.max, self.inv_temperature, @intCast(n));
        var sum = mass;
        for (keys, weights, 1..) |key, weight, in_bin| {
            const place: Place = .{ .id = @as(u32, @truncate(key)), .before = sum, .through = sum + weight };
            sum = place.through;
            const holds = switch (rule) {
                .count => |k| count + in_bin >= k,
                .mass => |m| sum >= m,
                .beyond => |m| sum > m,
                .weight => |least| weight < least,
            };
            if (holds) return place;
        }
        return null;
    }
};
