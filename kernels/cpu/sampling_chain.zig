//! Samplers in any order over one row. As long as nothing has cut the row, its tokens stay where they are and passes over
//! the whole row give what a sampler needs; the first sampler that leaves fewer makes a sorted list of those.
const std = @import("std");
const candidates = @import("candidates.zig");
const ctx_mod = @import("ctx.zig");
const core = @import("core");
const c = core.c;
const inf = std.math.inf(f32);
const logits_scan = @import("logits_scan.zig");
const Bins = @import("logits_bins.zig").Bins;
const Slot = logits_scan.Slot;
const widest = logits_scan.widest;
const sampling = @import("sampling.zig");
const Sample = sampling.Sample;
const Row = c.kt_sampling_row_t;

/// Tokens from which mirostat estimates the distribution's exponent.
const mirostat_head = 100;

fn orderOf(comptime stages: []const u64) u64 {
    var order: u64 = 0;
    for (stages, 0..) |stage, i| order |= stage << (4 * i);
    return order;
}

const default_order = orderOf(&.{
    c.KT_SAMPLER_PENALTIES,   c.KT_SAMPLER_DRY,   c.KT_SAMPLER_TOP_N_SIGMA,
    c.KT_SAMPLER_TEMPERATURE, c.KT_SAMPLER_TOP_K, c.KT_SAMPLER_TYPICAL_P,
    c.KT_SAMPLER_TOP_P,       c.KT_SAMPLER_MIN_P, c.KT_SAMPLER_XTC,
});
const mirostat_order = orderOf(&.{ c.KT_SAMPLER_PENALTIES, c.KT_SAMPLER_DRY, c.KT_SAMPLER_TEMPERATURE });

/// Whether a row has more than bias, penalties, temperature, top-k, top-p and min-p in their usual order.
pub fn isNeeded(row: *const Row) bool {
    return (row.order != 0 and row.order != default_order) or row.typical_p < 1 or row.top_n_sigma > 0 or
        xtcMayAct(row) or row.dynatemp_range > 0 or row.mirostat != 0;
}

fn xtcMayAct(row: *const Row) bool {
    return row.xtc_probability > 0 and row.xtc_threshold <= 0.5;
}

pub const Wrong = struct { []const u8, f64 };

pub fn wrongField(row: *const Row) ?Wrong {
    const finite = std.math.isFinite;
    if (!(row.typical_p >= 0 and row.typical_p <= 1)) return .{ "typical_p", row.typical_p };
    if (!(finite(row.top_n_sigma) and row.top_n_sigma >= 0)) return .{ "top_n_sigma", row.top_n_sigma };
    if (!(row.xtc_probability >= 0 and row.xtc_probability <= 1)) return .{ "xtc_probability", row.xtc_probability };
    if (!(row.xtc_threshold >= 0 and row.xtc_threshold <= 1)) return .{ "xtc_threshold", row.xtc_threshold };
    if (!(row.xtc_uniform >= 0 and row.xtc_uniform < 1)) return .{ "xtc_uniform", row.xtc_uniform };
    if (!(finite(row.dynatemp_range) and row.dynatemp_range >= 0)) return .{ "dynatemp_range", row.dynatemp_range };
    if (!(finite(row.dynatemp_exponent) and row.dynatemp_exponent >= 0)) return .{ "dynatemp_exponent", row.dynatemp_exponent };
    if (row.mirostat < 0 or row.mirostat > 2) return .{ "mirostat", @floatFromInt(row.mirostat) };
    if (row.mirostat != 0) {
        if (!finite(row.mirostat_tau)) return .{ "mirostat_tau", row.mirostat_tau };
        if (!finite(row.mirostat_eta)) return .{ "mirostat_eta", row.mirostat_eta };
        if (!finite(row.mirostat_mu)) return .{ "mirostat_mu", row.mirostat_mu };
    }
    var order = row.order;
    while (order != 0) : (order >>= 4) {
        const stage = order & 15;
        if (stage == 0 or stage > c.KT_SAMPLER_TEMPERATURE) return .{ "order", @floatFromInt(row.order) };
    }
    return null;
}

/// A row that isNeeded() and has a greatest logit above minus infinity.
pub fn draw(job: *Sample, index: usize, slot: *const Slot) usize {
    const row = &job.rows[index];
    var chain: Chain = .{ .job = job, .index = index, .row = row, .slot = slot, .max = job.scan.best(index).value };
    // differences to an infinite logit tell nothing: what else there is cannot be drawn
    if (chain.max == inf) chain.gather(inf);
    var order: u64 = if (row.mirostat != 0) mirostat_order else if (row.order != 0) row.order else default_order;
    while (order != 0) : (order >>= 4) chain.apply(order & 15);
    return switch (row.mirostat) {
        1 => chain.drawMirostat(),
        2 => chain.drawMirostat2(),
        else => chain.drawOne(),
    };
}

fn valueOf(key: u64) f32 {
    const descending: u32 = @intCast(key >> 32);
    return @bitCast(if (descending >> 31 != 0) descending else ~descending & 0x7fffffff);
}

fn keyOf(value: f32, id: u64) u64 {
    const bits: u32 = @bitCast(value + 0); // -0 becomes 0
    const descending = if (bits >> 31 != 0) bits else ~bits & 0x7fffffff;
    return @as(u64, descending) << 32 | id;
}

fn idOf(key: u64) u32 {
    return @truncate(key);
}

const Chain = struct {
    job: *Sample,
    index: usize,
    row: *Row,
    slot: *const Slot,
    /// Logits count multiplied by this.
    scale: f32 = 1,
    /// The row's greatest logit, as long as there is no list.
    max: f32,
    /// What is left, best first.
    list: ?[]u64 = null,

    fn apply(self: *Chain, stage: u64) void {
        const row = self.row;
        switch (stage) {
            c.KT_SAMPLER_PENALTIES => if (sampling.penalises(row)) self.penalise(),
            c.KT_SAMPLER_DRY => if (row.dry_len > 0) self.subtractDry(),
            c.KT_SAMPLER_TOP_N_SIGMA => if (row.top_n_sigma > 0) self.topNSigma(),
            c.KT_SAMPLER_TOP_K => if (row.top_k > 0) self.topK(@intCast(row.top_k)),
            c.KT_SAMPLER_TYPICAL_P => if (row.typical_p < 1) self.typical(),
            c.KT_SAMPLER_TOP_P => if (row.top_p < 1) self.topP(),
            c.KT_SAMPLER_MIN_P => if (row.min_p > 0) self.minP(),
            c.KT_SAMPLER_XTC => if (xtcMayAct(row) and row.xtc_uniform < row.xtc_probability) self.xtc(),
            c.KT_SAMPLER_TEMPERATURE => self.temperature(),
            else => unreachable,
        }
    }

    // ---- what samplers look at ----

    fn sort(self: *Chain, keys: []u64) void {
        self.list = candidates.sort(keys, self.slot.other);
    }

    /// The list of all tokens with at least this logit.
    fn gather(self: *Chain, bound: f32) void {
        self.sort(self.job.scan.gather(self.index, bound, self.slot.keys, self.job.scan.vocab));
    }

    fn everything(self: *Chain) []u64 {
        if (self.list == null) self.gather(-std.math.floatMax(f32));
        return self.list.?;
    }

    fn weightsOf(self: *const Chain, keys: []const u64) []f32 {
        const isa = self.job.scan.ctx.isa;
        const weights = self.slot.weights[0..keys.len];
        isa.key_values.?(keys.ptr, weights.ptr, @intCast(keys.len));
        isa.weight_row.?(weights.ptr, valueOf(keys[0]), self.scale, @intCast(keys.len));
        return weights;
    }

    fn sumOf(weights: []const f32) f64 {
        var sum: f64 = 0;
        for (weights) |weight| sum += weight;
        return sum;
    }

    const Distribution = struct { mass: f64, entropy: f64 };

    /// Entropy in nats.
    fn entropyOf(weights: []const f32) Distribution {
        var mass: f64 = 0;
        var surprise: f64 = 0;
        for (weights) |weight| {
            if (weight == 0) continue;
            mass += weight;
            surprise += weight * @log(@as(f64, weight));
        }
        return .{ .mass = mass, .entropy = @log(mass) - surprise / mass };
    }

    fn rowDistribution(self: *const Chain) Distribution {
        const scan = &self.job.scan;
        const values = scan.logits.f32Row(self.index);
        var moments = [_]f64{ 0, 0 };
        scan.ctx.isa.weight_moments.?(values, self.max, self.scale, @intCast(scan.vocab), &moments);
        return .{ .mass = moments[0], .entropy = @log(moments[0]) - moments[1] / moments[0] };
    }

    fn rowMass(self: *const Chain) f64 {
        const scan = &self.job.scan;
        const values = scan.logits.f32Row(self.index);
        return scan.ctx.isa.weight_sum.?(values, self.max, self.scale, @intCast(scan.vocab));
    }

    /// Count, mean distance to the maximum and its standard deviation.
    fn rowMoments(self: *const Chain) struct { count: f64, deviation: f64 } {
        const scan = &self.job.scan;
        const values = scan.logits.f32Row(self.index);
        var moments = [_]f64{ 0, 0, 0 };
        scan.ctx.isa.logit_moments.?(values, self.max, @intCast(scan.vocab), &moments);
        const mean = moments[1] / moments[0];
        return .{ .count = moments[0], .deviation = @sqrt(@max(0, moments[2] / moments[0] - mean * mean)) };
    }

    /// Logits were changed in place.
    fn refreshMax(self: *Chain) void {
        const scan = &self.job.scan;
        for (0..scan.chunks_per_row) |i| scan.findMax(self.index * scan.chunks_per_row + i);
        self.max = scan.best(self.index).value;
    }

    /// The list of the most probable tokens up to at least where the rule holds.
    fn cut(self: *Chain, rule: Bins.Rule) void {
        const scan = &self.job.scan;
        var width: f32 = 1;
        while (true) : (width = @min(width * 2, widest)) {
            const keys = scan.gather(self.index, self.max - width / self.scale, self.slot.keys, sampling.most_sorted);
            if (keys.len > sampling.most_sorted) break;
            const enough = switch (rule) {
                .count => |k| keys.len >= k,
                .mass => |m| width >= widest or self.massOf(keys) >= m,
                else => unreachable,
            };
            if (enough) return self.sort(keys);
            if (width >= widest) break;
        }
        var bins: Bins = undefined;
        bins.fill(scan, self.index, self.slot, self.max, 1 / self.scale, self.scale);
        const place = bins.locate(rule) orelse return self.gather(-std.math.floatMax(f32));
        self.gather(@max(scan.logits.f32Row(self.index)[place.id], -std.math.floatMax(f32)));
    }

    fn massOf(self: *const Chain, keys: []const u64) f64 {
        const isa = self.job.scan.ctx.isa;
        isa.key_values.?(keys.ptr, self.slot.weights.ptr, @intCast(keys.len));
        return isa.weight_sum.?(self.slot.weights.ptr, self.max, self.scale, @intCast(keys.len));
    }

    // ---- samplers ----

    fn penalise(self: *Chain) void {
        if (self.list) |list| {
            Sample.count(self.row, self.slot);
            for (list) |*key| {
                const logit = valueOf(key.*);
                const seen = self.slot.seen[idOf(key.*)];
                const changed = if (seen == 0) logit else Sample.penalised(self.row, logit, seen, self.scale);
                key.* = keyOf(changed, idOf(key.*));
            }
            return std.sort.pdq(u64, list, {}, std.sort.asc(u64));
        }
        self.job.penalise(self.index, self.slot, self.scale);
        self.refreshMax();
    }

    fn subtractDry(self: *Chain) void {
        const row = self.row;
        if (self.list) |list| {
            @memset(self.slot.seen, 0);
            for (0..@intCast(row.dry_len)) |i| self.slot.seen[@intCast(row.dry_ids[i])] = @intCast(i + 1);
            for (list) |*key| {
                const seen = self.slot.seen[idOf(key.*)];
                if (seen > 0) key.* = keyOf(valueOf(key.*) - row.dry_penalties[seen - 1] / self.scale, idOf(key.*));
            }
            return std.sort.pdq(u64, list, {}, std.sort.asc(u64));
        }
        self.job.subtractDry(self.index, self.scale);
        self.refreshMax();
    }

    /// llama.cpp's top_n_sigma ("Top-nσ: Not All Logits Are You Need", arXiv:2411.07641).
    fn topNSigma(self: *Chain) void {
        if (self.max == -inf) return;
        if (self.list) |list| {
            if (list.len < 2 or self.max == inf) return;
            const best: f64 = valueOf(list[0]);
            var sum: f64 = 0;
            var squares: f64 = 0;
            for (list) |key| {
                const d = valueOf(key) - best;
                sum += d;
                squares += d * d;
            }
            const n: f64 = @floatFromInt(list.len);
            const deviation = @sqrt(@max(0, squares / n - sum / n * (sum / n)));
            const bound = best - self.row.top_n_sigma * deviation;
            var kept: usize = 1;
            while (kept < list.len and valueOf(list[kept]) >= bound) kept += 1;
            self.list = list[0..kept];
            return;
        }
        const bound = self.max - self.row.top_n_sigma * self.rowMoments().deviation;
        self.gather(@floatCast(@max(bound, -std.math.floatMax(f32))));
    }

    fn topK(self: *Chain, k: usize) void {
        if (k >= self.job.scan.vocab) return;
        if (self.list == null) self.cut(.{ .count = k });
        const list = self.list.?;
        self.list = list[0..@min(k, list.len)];
    }

    /// Nucleus sampling (arXiv:1904.09751).
    fn topP(self: *Chain) void {
        const p: f64 = self.row.top_p;
        const isWhole = self.list == null;
        const mass = if (isWhole) self.rowMass() else 0;
        if (isWhole) self.cut(.{ .mass = p * mass });
        const list = self.list.?;
        const weights = self.weightsOf(list);
        const enough = p * if (isWhole) mass else sumOf(weights);
        var sum: f64 = 0;
        for (weights, 1..) |weight, n| {
            sum += weight;
            if (sum < enough) continue;
            self.list = list[0..n];
            return;
        }
    }

    /// llama.cpp's min_p (arXiv:2407.01082).
    fn minP(self: *Chain) void {
        if (self.list == null) self.gather(@max(self.max - (0.01 - @log(self.row.min_p)) / self.scale, -std.math.floatMax(f32)));
        const list = self.list.?;
        const weights = self.weightsOf(list);
        var kept: usize = 1;
        while (kept < list.len and weights[kept] >= self.row.min_p) kept += 1;
        self.list = list[0..kept];
    }

    /// Locally typical sampling (arXiv:2202.00666): tokens whose surprise is nearest to the entropy, which in order of
    /// probability are neighbours.
    fn typical(self: *Chain) void {
        if (self.list) |list| {
            const weights = self.weightsOf(list);
            const window = typicalWindow(weights, entropyOf(weights), self.row.typical_p, true).?;
            self.list = list[window.first..window.end];
            return;
        }
        const whole = self.rowDistribution();
        var width: f64 = 1;
        while (true) : (width *= 2) {
            const surprise = @min(whole.entropy + width - @log(whole.mass), widest);
            self.gather(@max(self.max - @as(f32, @floatCast(@max(surprise, 0))) / self.scale, -std.math.floatMax(f32)));
            const list = self.list.?;
            const window = typicalWindow(self.weightsOf(list), whole, self.row.typical_p, surprise >= widest) orelse continue;
            self.list = list[window.first..window.end];
            return;
        }
    }

    const Window = struct { first: usize, end: usize };

    /// Null when the weights, which begin with the greatest, are not `all` and one of the others may belong to it.
    fn typicalWindow(weights: []const f32, whole: Distribution, p: f64, all: bool) ?Window {
        const offset = @log(whole.mass) - whole.entropy; // surprise - entropy = offset - ln(weight)
        var end: usize = 0;
        while (end < weights.len and offset - @log(@as(f64, weights[end])) < 0) end += 1;
        var first = end;
        var mass: f64 = 0;
        while (true) {
            const above: ?f64 = if (first > 0) @log(@as(f64, weights[first - 1])) - offset else null;
            const below: ?f64 = if (end < weights.len and weights[end] > 0) offset - @log(@as(f64, weights[end])) else null;
            if (below == null and end == weights.len and !all) return null;
            if (above == null and below == null) break;
            if (below == null or (above != null and above.? < below.?)) {
                first -= 1;
                mass += weights[first];
            } else {
                mass += weights[end];
                end += 1;
            }
            if (mass > p * whole.mass) break;
        }
        return .{ .first = first, .end = @max(end, first + 1) };
    }

    /// llama.cpp's xtc ("exclude top choices"): of the tokens above the threshold only the least probable stays.
    fn xtc(self: *Chain) void {
        const list = self.everything();
        if (list.len < 2) return;
        const weights = self.weightsOf(list);
        const least = self.row.xtc_threshold * sumOf(weights);
        var above: usize = 0;
        while (above < list.len and weights[above] >= least and weights[above] > 0) above += 1;
        if (above > 1) self.list = list[above - 1 ..];
    }

    /// With a range, llama.cpp's dynamic temperature: the more even the distribution, the higher (arXiv:2309.02772).
    fn temperature(self: *Chain) void {
        const row = self.row;
        var chosen: f64 = row.temperature;
        if (row.dynatemp_range > 0) {
            const count: f64 = if (self.list) |list| @floatFromInt(list.len) else self.rowMoments().count;
            if (count <= 1) return;
            const entropy = if (self.list) |list| entropyOf(self.weightsOf(list)).entropy else self.rowDistribution().entropy;
            const least = @max(0, chosen - row.dynatemp_range);
            const most = chosen + row.dynatemp_range;
            const evenness = @min(1, @max(0, entropy / @log(count)));
            chosen = least + (most - least) * std.math.pow(f64, evenness, row.dynatemp_exponent);
        }
        if (chosen > 0) {
            const scale: f32 = @floatCast(@as(f64, self.scale) / chosen);
            self.scale = @min(scale, std.math.floatMax(f32));
            return;
        }
        if (self.list == null) self.cut(.{ .count = 1 });
        self.list = self.list.?[0..1];
    }

    // ---- the draw ----

    fn drawOne(self: *Chain) usize {
        const row = self.row;
        if (self.list == null) {
            var plain = row.*;
            plain.temperature = @max(1 / self.scale, std.math.floatMin(f32));
            plain.top_k = 0;
            plain.top_p = 1;
            plain.min_p = 0;
            if (self.max == -inf) return self.job.scan.best(self.index).index orelse 0;
            return self.job.drawFiltered(&plain, self.index, self.slot, self.max, self.rowMass());
        }
        const list = self.list.?;
        return idOf(list[pick(self.weightsOf(list), row.uniform)]);
    }

    fn pick(weights: []const f32, uniform: f64) usize {
        const target = uniform * sumOf(weights);
        var sum: f64 = 0;
        var last: usize = 0;
        for (weights, 0..) |weight, i| {
            if (weight == 0) break;
            last = i;
            sum += weight;
            if (sum > target) break;
        }
        return last;
    }

    /// Mirostat (arXiv:2007.14966), as llama.cpp computes it: as many of the best tokens as should give the surprise mu.
    fn drawMirostat(self: *Chain) usize {
        const isWhole = self.list == null;
        if (isWhole) self.cut(.{ .count = mirostat_head });
        const weights = self.weightsOf(self.list.?);
        const vocab: f64 = @floatFromInt(self.job.scan.vocab);
        var products: f64 = 0;
        var squares: f64 = 0;
        for (1..@min(weights.len, mirostat_head)) |i| {
            if (weights[i] == 0) break;
            const rank: f64 = @floatFromInt(i);
            const step = @log((rank + 1) / rank);
            products += step * @log(@as(f64, weights[i - 1]) / weights[i]);
            squares += step * step;
        }
        const exponent = products / squares;
        const excess = exponent - 1;
        const k = std.math.pow(f64, excess * std.math.exp2(@as(f64, self.row.mirostat_mu)) / (1 - std.math.pow(f64, vocab, -excess)), 1 / exponent);
        const kept: usize = if (!(k >= 1)) 1 else @intFromFloat(@min(k, vocab));
        if (kept > self.list.?.len and isWhole) self.cut(.{ .count = kept });
        return self.drawAndLearn(kept);
    }

    /// Mirostat 2.0: tokens whose surprise is at most mu.
    fn drawMirostat2(self: *Chain) usize {
        const mass = if (self.list) |list| sumOf(self.weightsOf(list)) else self.rowMass();
        // surprise in bits <= mu: weight / mass >= 2^-mu
        const least = @log(mass) - @as(f64, self.row.mirostat_mu) * @log(2.0);
        if (self.list == null) {
            const distance: f32 = @floatCast(@min(@max(-least, 0) + 0.01, widest));
            self.gather(@max(self.max - distance / self.scale, -std.math.floatMax(f32)));
        }
        const weights = self.weightsOf(self.list.?);
        var kept: usize = 1;
        while (kept < weights.len and weights[kept] > 0 and @log(@as(f64, weights[kept])) >= least) kept += 1;
        return self.drawAndLearn(kept);
    }

    fn drawAndLearn(self: *Chain, kept: usize) usize {
        const list = self.list.?[0..@min(kept, self.list.?.len)];
        const weights = self.weightsOf(list);
        const chosen = pick(weights, self.row.uniform);
        const surprise = -@log2(@as(f64, weights[chosen]) / sumOf(weights));
        self.row.mirostat_mu -= self.row.mirostat_eta * @as(f32, @floatCast(surprise - self.row.mirostat_tau));
        return idOf(list[chosen]);
    }
};
