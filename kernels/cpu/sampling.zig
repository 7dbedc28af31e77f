//! kt_argmax, kt_sample, kt_logprobs. Rows are scanned in chunks over the pool: maxima, then sums of weights. What decides
//! a draw is then looked for among the few tokens near the maximum, in a range that widens until it holds enough; when
//! that would be many, in a histogram of the row, of which only the bins that decide are sorted.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const candidates = @import("candidates.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const invalid = c.KT_ERR_INVALID_ARG;
const inf = std.math.inf(f32);

const chunk_values = 4096;
/// No more logits than this in all are scanned by the caller alone: one core reads them in about 15 us.
const serial_values = 1 << 18;
/// Weighing a logit costs about as much as finding the maximum of this many.
const weighing_cost = 4;
/// More tokens than this near the maximum are not sorted.
const most_sorted = 4096;
/// Below e^-87 a weight is 0, so a range this wide holds everything that can be drawn.
const widest = 88;

/// Work claimed over the pool, or counted through by the caller alone.
const Claims = struct {
    member: ?*Member,
    phase: usize,
    total: usize,
    at: usize = 0,

    fn next(self: *Claims) ?usize {
        if (self.member) |member| return member.claim(self.phase, self.total);
        if (self.at == self.total) return null;
        self.at += 1;
        return self.at - 1;
    }
};

fn barrier(member: ?*Member) void {
    if (member) |m| m.barrier();
}

fn slotOf(member: ?*Member) usize {
    return if (member) |m| m.index else 0;
}

const Best = struct { value: f32, index: ?usize };
const Chunk = struct { max: f32, index: i64, sum: f64 };

const Scan = struct {
    ctx: *ctx_mod.Ctx,
    logits: check.Rows,
    vocab: usize,
    chunks_per_row: usize,
    chunks: []Chunk,

    fn count(self: *const Scan) usize {
        return self.logits.count * self.chunks_per_row;
    }

    fn values(self: *const Scan, unit: usize) []f32 {
        const start = unit % self.chunks_per_row * chunk_values;
        return self.logits.f32Row(unit / self.chunks_per_row)[start..@min(self.vocab, start + chunk_values)];
    }

    fn findMax(self: *const Scan, unit: usize) void {
        const part = self.values(unit);
        const chunk = &self.chunks[unit];
        chunk.index = self.ctx.isa.argmax_row.?(part.ptr, @intCast(part.len), &chunk.max);
    }

    fn rowChunks(self: *const Scan, row: usize) []Chunk {
        return self.chunks[row * self.chunks_per_row ..][0..self.chunks_per_row];
    }

    fn best(self: *const Scan, row: usize) Best {
        var found: Best = .{ .value = -inf, .index = null };
        for (self.rowChunks(row), 0..) |chunk, i| {
            if (chunk.index < 0) continue;
            if (found.index == null or chunk.max > found.value)
                found = .{ .value = chunk.max, .index = i * chunk_values + @as(usize, @intCast(chunk.index)) };
        }
        return found;
    }

    fn addWeights(self: *const Scan, unit: usize, inv_temperature: f32) void {
        const part = self.values(unit);
        const max = self.best(unit / self.chunks_per_row).value;
        self.chunks[unit].sum = self.ctx.isa.weight_sum.?(part.ptr, max, inv_temperature, @intCast(part.len));
    }

    fn sum(self: *const Scan, row: usize) f64 {
        var total: f64 = 0;
        for (self.rowChunks(row)) |chunk| total += chunk.sum;
        return total;
    }

    /// Keys of the row's logits that are at least `bound`, in the order of their ids; gives up beyond `limit`.
    fn gather(self: *const Scan, row: usize, bound: f32, keys: []u64, limit: usize) []u64 {
        var n: usize = 0;
        for (self.rowChunks(row), 0..) |chunk, i| {
            if (n > limit) break;
            if (!(chunk.max >= bound)) continue;
            const part = self.values(row * self.chunks_per_row + i);
            n += @intCast(self.ctx.isa.gather_above.?(part.ptr, @intCast(part.len), bound, @intCast(i * chunk_values), keys.ptr + n));
        }
        return keys[0..n];
    }
};

/// One thread's memory for the candidates of a row.
const Slot = struct { keys: []u64, other: []u64, weights: []f32, seen: []u32 };

/// A logit changed in place for one call, and what it was.
const Edit = struct { id: u32, old: f32 };

const Memory = struct {
    chunks: []Chunk,
    slots: []Slot = &.{},
    edits: []Edit = &.{},

    /// All arrays in the context's scratch. `slots` threads get candidate arrays, with `seen` for penalties.
    fn take(ctx: *ctx_mod.Ctx, chunks: usize, slots: usize, vocab: usize, seen: bool, edits: usize) error{OutOfMemory}!Memory {
        const slot_bytes = vocab * (2 * @sizeOf(u64) + 2 * @sizeOf(f32)) + @sizeOf(Slot) + 256;
        const bytes = chunks * @sizeOf(Chunk) + slots * slot_bytes + edits * @sizeOf(Edit) + 1024;
        var fixed = std.heap.FixedBufferAllocator.init(try ctx.reserve(bytes));
        const gpa = fixed.allocator();
        var memory: Memory = .{ .chunks = try gpa.alloc(Chunk, chunks) };
        memory.slots = try gpa.alloc(Slot, slots);
        for (memory.slots) |*slot| slot.* = .{
            .keys = try gpa.alloc(u64, vocab),
            .other = try gpa.alloc(u64, vocab),
            .weights = try gpa.alloc(f32, vocab),
            .seen = try gpa.alloc(u32, if (seen) vocab else 0),
        };
        memory.edits = try gpa.alloc(Edit, edits);
        return memory;
    }
};

fn scanOf(ctx: *ctx_mod.Ctx, t: *const check.Tensor) ?Scan {
    const logits = check.rows("logits", t) orelse return null;
    const vocab: usize = @intCast(t.shape[1]);
    if (t.shape[1] > std.math.maxInt(i32)) {
        _ = core.status.invalid("logits has {d} columns, more than an id can name", .{t.shape[1]});
        return null;
    }
    if (logits.count > 1 and logits.stride < vocab * @sizeOf(f32)) {
        _ = core.status.invalid("logits has rows of {d} values {d} bytes apart: they overlap", .{ vocab, logits.stride });
        return null;
    }
    const chunks_per_row = std.math.divCeil(usize, vocab, chunk_values) catch unreachable;
    return .{ .ctx = ctx, .logits = logits, .vocab = vocab, .chunks_per_row = chunks_per_row, .chunks = &.{} };
}

/// Runs body(job, member) over the pool, or alone (member null) when there is little to scan.
fn launch(job: anytype, comptime body: anytype, cost: usize) void {
    const scan: *const Scan = &job.scan;
    if (scan.logits.count * scan.vocab * cost <= serial_values) return body(job, null);
    const Pooled = struct {
        fn run(pooled: @TypeOf(job), member: *Member) void {
            body(pooled, member);
        }
    };
    scan.ctx.pool.run(job, Pooled.run);
}

fn i32Data(t: *const check.Tensor) []i32 {
    return @as([*]i32, @ptrCast(@alignCast(t.data.?)))[0..@intCast(t.shape[0])];
}

// ---- argmax ----

const Argmax = struct {
    scan: Scan,

    fn body(self: *const Argmax, member: ?*Member) void {
        var units: Claims = .{ .member = member, .phase = 0, .total = self.scan.count() };
        while (units.next()) |unit| self.scan.findMax(unit);
    }
};

export fn kt_argmax(handle: ?*c.kt_ctx_t, logits: ?*const c.kt_tensor_t, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tl = check.f32s("logits", logits, 2) orelse return invalid;
    const to = check.i32s("out", out, 1) orelse return invalid;
    if (!check.size("out", to, 0, tl.shape[0])) return invalid;
    var job: Argmax = .{ .scan = scanOf(ctx, tl) orelse return invalid };
    const memory = Memory.take(ctx, job.scan.count(), 0, 0, false, 0) catch return core.status.outOfMemory(@intCast(job.scan.count()));
    job.scan.chunks = memory.chunks;
    launch(&job, Argmax.body, 1);
    for (i32Data(to), 0..) |*id, row| id.* = @intCast(job.scan.best(row).index orelse 0);
    return c.KT_OK;
}

// ---- sample ----

/// A row's weights summed over bins of equal width in the logit, so that places in the order of all tokens are found by
/// sorting one bin.
const Bins = struct {
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
    const Rule = union(enum) {
        count: usize, // this many have come
        mass: f64, // this mass is reached
        beyond: f64, // this mass is exceeded
        weight: f32, // the weights are below this
    };
    const Place = struct { id: usize, before: f64, through: f64 };

    fn fill(self: *Bins, scan: *const Scan, row: usize, slot: *const Slot, max: f32, temperature: f32, inv_temperature: f32) void {
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

    fn total(self: *const Bins) f64 {
        var sum: f64 = 0;
        for (self.masses) |mass| sum += mass;
        return sum;
    }

    /// Where the rule first holds, or null.
    fn locate(self: *const Bins, rule: Rule) ?Place {
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
    fn leastWeight(self: *const Bins, bin: usize) f32 {
        if (self.scale == 0 or bin == bin_count - 1) return 0;
        const distance = @as(f32, @floatFromInt(bin + 1)) / self.scale * self.inv_temperature;
        return @exp(-1.001 * distance - 0.001);
    }

    /// The place within one bin, before which come `count` tokens of `mass`.
    fn search(self: *const Bins, bin: usize, rule: Rule, count: usize, mass: f64) ?Place {
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

fn penalises(row: *const c.kt_sampling_row_t) bool {
    return row.history_len > 0 and
        (row.repetition_penalty != 1 or row.presence_penalty != 0 or row.frequency_penalty != 0);
}

fn editCount(row: *const c.kt_sampling_row_t, vocab: usize) usize {
    const bias: usize = @intCast(row.bias_len);
    const history: usize = @intCast(row.history_len);
    return bias + if (penalises(row)) @min(history, vocab) else 0;
}

const Sample = struct {
    scan: Scan,
    rows: []const c.kt_sampling_row_t,
    out: []i32,
    slots: []Slot,
    edits: []Edit,
    edits_used: []usize, // by row; its room begins at edit_starts
    edit_starts: []usize,

    fn isGreedy(row: *const c.kt_sampling_row_t) bool {
        return row.temperature == 0 or row.top_k == 1;
    }

    fn topK(self: *const Sample, row: *const c.kt_sampling_row_t) ?usize {
        const k: usize = @intCast(row.top_k);
        return if (k == 0 or k >= self.scan.vocab) null else k;
    }

    /// Whether the mass of the whole row matters: not when only the best few or those of a bounded weight are drawn.
    fn needsSum(self: *const Sample, row: *const c.kt_sampling_row_t) bool {
        return !isGreedy(row) and self.topK(row) == null and (row.top_p < 1 or row.min_p == 0);
    }

    fn inverseTemperature(row: *const c.kt_sampling_row_t) f32 {
        return @min(1 / row.temperature, std.math.floatMax(f32));
    }

    fn body(self: *Sample, member: ?*Member) void {
        const scan = &self.scan;
        const slot = &self.slots[slotOf(member)];
        if (self.edits.len > 0) {
            var edited: Claims = .{ .member = member, .phase = 0, .total = self.rows.len };
            while (edited.next()) |row| self.edit(row, slot);
            barrier(member);
        }
        var maxima: Claims = .{ .member = member, .phase = 1, .total = scan.count() };
        while (maxima.next()) |unit| scan.findMax(unit);
        barrier(member);
        var sums: Claims = .{ .member = member, .phase = 2, .total = scan.count() };
        while (sums.next()) |unit| {
            const row = &self.rows[unit / scan.chunks_per_row];
            if (self.needsSum(row)) scan.addWeights(unit, inverseTemperature(row));
        }
        barrier(member);
        var finished: Claims = .{ .member = member, .phase = 3, .total = self.rows.len };
        while (finished.next()) |row| {
            self.out[row] = @intCast(self.draw(row, slot));
            if (self.edits.len > 0) self.restore(row);
        }
    }

    /// Bias and penalties change few of a row's logits: they are changed in place and put back after the draw.
    fn edit(self: *Sample, index: usize, slot: *const Slot) void {
        const row = &self.rows[index];
        const logits = self.scan.logits.f32Row(index);
        const room = self.edits[self.edit_starts[index]..];
        var used: usize = 0;
        for (0..@intCast(row.bias_len)) |i| {
            const id: u32 = @intCast(row.bias_ids[i]);
            room[used] = .{ .id = id, .old = logits[id] };
            used += 1;
            logits[id] += row.bias_values[i];
        }
        if (penalises(row)) {
            const first = used;
            const history = row.history[0..@intCast(row.history_len)];
            @memset(slot.seen, 0); // once in the history: bit 0; each time in the output: 2
            for (history, 0..) |token, i| {
                const id: u32 = @intCast(token);
                if (slot.seen[id] == 0) {
                    room[used] = .{ .id = id, .old = logits[id] };
                    used += 1;
                    slot.seen[id] = 1;
                }
                if (i >= row.prompt_len) slot.seen[id] += 2;
            }
            for (room[first..used]) |entry| {
                const logit = &logits[entry.id];
                logit.* = if (logit.* > 0) logit.* / row.repetition_penalty else logit.* * row.repetition_penalty;
                const times: f32 = @floatFromInt(slot.seen[entry.id] >> 1);
                if (times > 0) logit.* -= row.presence_penalty + times * row.frequency_penalty;
            }
        }
        self.edits_used[index] = used;
    }

    fn restore(self: *Sample, index: usize) void {
        const logits = self.scan.logits.f32Row(index);
        var i = self.edits_used[index];
        while (i > 0) { // backwards: a token may have been biased more than once
            i -= 1;
            const entry = self.edits[self.edit_starts[index] + i];
            logits[entry.id] = entry.old;
        }
    }

    fn draw(self: *const Sample, index: usize, slot: *const Slot) usize {
        const scan = &self.scan;
        const isa = scan.ctx.isa;
        const row = &self.rows[index];
        const best = scan.best(index);
        const greedy = best.index orelse return 0;
        if (isGreedy(row) or best.value == -inf) return greedy;
        const inv_temperature = inverseTemperature(row);
        const top_k = self.topK(row);
        var mass = if (self.needsSum(row)) scan.sum(index) else 0;
        const keys = self.head(index, slot, best.value, mass) orelse return self.drawFromBins(index, slot, best.value);
        const n = if (top_k) |k| @min(k, keys.len) else keys.len;
        const weights = slot.weights[0..n];
        isa.key_values.?(keys.ptr, weights.ptr, @intCast(n));
        isa.weight_row.?(weights.ptr, best.value, inv_temperature, @intCast(n));
        if (top_k != null) for (weights) |weight| {
            mass += weight;
        };
        var kept: usize = n;
        if (row.top_p < 1 or row.min_p > 0) {
            const enough = row.top_p * mass;
            var sum: f64 = 0;
            for (weights, 0..) |weight, i| {
                if (weight < row.min_p) {
                    kept = i;
                    break;
                }
                sum += weight;
                if (row.top_p < 1 and sum >= enough) {
                    kept = i + 1;
                    break;
                }
            }
            mass = sum;
        }
        const target = row.uniform * mass;
        var sum: f64 = 0;
        var last: usize = 0;
        for (weights[0..kept], 0..) |weight, i| {
            if (weight == 0) break;
            last = i;
            sum += weight;
            if (sum > target) break;
        }
        return @as(u32, @truncate(keys[last]));
    }

    /// The row's most probable tokens, sorted: at least all that may survive the filters, or as many as the draw needs.
    /// Null when these are many.
    fn head(self: *const Sample, index: usize, slot: *const Slot, max: f32, total: f64) ?[]u64 {
        const row = &self.rows[index];
        const top_k = self.topK(row);
        const min_p_width: f32 = if (row.min_p > 0) 0.01 - @log(row.min_p) else widest;
        const needed = if (row.top_p < 1) row.top_p * total else if (row.min_p > 0) inf else row.uniform * total;
        var width: f32 = 1;
        while (true) : (width = @min(width * 2, widest)) {
            const keys = self.scan.gather(index, max - width * row.temperature, slot.keys, most_sorted);
            if (keys.len > most_sorted) return null;
            const enough = width >= widest or if (top_k) |k|
                keys.len >= k
            else
                width >= min_p_width or self.massOf(row, keys, slot, max) > needed;
            if (enough) return candidates.sort(keys, slot.other);
        }
    }

    /// The same draw when its candidates are many: each filter, then the draw, is located in a histogram.
    fn drawFromBins(self: *const Sample, index: usize, slot: *const Slot, max: f32) usize {
        const row = &self.rows[index];
        var bins: Bins = undefined;
        bins.fill(&self.scan, index, slot, max, row.temperature, inverseTemperature(row));
        var mass = bins.total();
        if (self.topK(row)) |k| if (bins.locate(.{ .count = k })) |last| {
            mass = last.through;
        };
        if (row.top_p < 1) if (bins.locate(.{ .mass = row.top_p * mass })) |last| {
            mass = last.through;
        };
        if (row.min_p > 0) if (bins.locate(.{ .weight = row.min_p })) |first_out| {
            mass = @min(mass, first_out.before);
        };
        // uniform is at most 1 - 2^-24, far enough below 1 for sums of float64 to pass the target
        return bins.locate(.{ .beyond = row.uniform * mass }).?.id;
    }

    fn massOf(self: *const Sample, row: *const c.kt_sampling_row_t, keys: []const u64, slot: *const Slot, max: f32) f64 {
        const isa = self.scan.ctx.isa;
        isa.key_values.?(keys.ptr, slot.weights.ptr, @intCast(keys.len));
        return isa.weight_sum.?(slot.weights.ptr, max, inverseTemperature(row), @intCast(keys.len));
    }
};

fn checkRow(index: usize, row: *const c.kt_sampling_row_t, vocab: usize) bool {
    const finite = std.math.isFinite;
    const wrong: ?struct { []const u8, f64 } = if (!(finite(row.temperature) and row.temperature >= 0))
        .{ "temperature", row.temperature }
    else if (!(row.top_p >= 0 and row.top_p <= 1))
        .{ "top_p", row.top_p }
    else if (!(row.min_p >= 0 and row.min_p <= 1))
        .{ "min_p", row.min_p }
    else if (!(finite(row.repetition_penalty) and row.repetition_penalty > 0))
        .{ "repetition_penalty", row.repetition_penalty }
    else if (!finite(row.presence_penalty))
        .{ "presence_penalty", row.presence_penalty }
    else if (!finite(row.frequency_penalty))
        .{ "frequency_penalty", row.frequency_penalty }
    else if (!(row.uniform >= 0 and row.uniform < 1))
        .{ "uniform", row.uniform }
    else if (row.top_k < 0)
        .{ "top_k", @floatFromInt(row.top_k) }
    else if (row.history_len < 0 or (row.history_len > 0 and row.history == null))
        .{ "history_len", @floatFromInt(row.history_len) }
    else if (row.prompt_len < 0 or row.prompt_len > row.history_len)
        .{ "prompt_len", @floatFromInt(row.prompt_len) }
    else if (row.bias_len < 0 or (row.bias_len > 0 and (row.bias_ids == null or row.bias_values == null)))
        .{ "bias_len", @floatFromInt(row.bias_len) }
    else
        null;
    if (wrong) |field| {
        _ = core.status.invalid("rows[{d}].{s} is {d}", .{ index, field[0], field[1] });
        return false;
    }
    if (penalises(row) and !checkIds("history", index, row.history[0..@intCast(row.history_len)], vocab)) return false;
    return row.bias_len == 0 or checkIds("bias_ids", index, row.bias_ids[0..@intCast(row.bias_len)], vocab);
}

fn checkIds(name: []const u8, index: usize, ids: []const i32, vocab: usize) bool {
    for (ids, 0..) |id, i| {
        if (id >= 0 and id < vocab) continue;
        _ = core.status.invalid("rows[{d}].{s}[{d}] is {d}, the vocabulary has ids 0 to {d}", .{ index, name, i, id, vocab - 1 });
        return false;
    }
    return true;
}

export fn kt_sample(handle: ?*c.kt_ctx_t, logits: ?*const c.kt_tensor_t, rows: ?[*]const c.kt_sampling_row_t, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tl = check.f32s("logits", logits, 2) orelse return invalid;
    const to = check.i32s("out", out, 1) orelse return invalid;
    if (!check.size("out", to, 0, tl.shape[0])) return invalid;
    const count: usize = @intCast(tl.shape[0]);
    const given = (rows orelse return core.status.invalid("rows is NULL", .{}))[0..count];
    const scan = scanOf(ctx, tl) orelse return invalid;
    var edits: usize = 0;
    var seen = false;
    for (given, 0..) |*row, index| {
        if (!checkRow(index, row, scan.vocab)) return invalid;
        edits += editCount(row, scan.vocab);
        seen = seen or penalises(row);
    }
    var starts_buffer: [256]usize = undefined;
    const starts = if (2 * count <= starts_buffer.len)
        starts_buffer[0 .. 2 * count]
    else
        ctx_mod.gpa.alloc(usize, 2 * count) catch return core.status.outOfMemory(@intCast(16 * count));
    defer if (2 * count > starts_buffer.len) ctx_mod.gpa.free(starts);
    const memory = Memory.take(ctx, scan.count(), ctx.pool.num_threads, scan.vocab, seen, edits) catch
        return core.status.outOfMemory(@intCast(scan.vocab * 24 * ctx.pool.num_threads));
    var job: Sample = .{
        .scan = scan,
        .rows = given,
        .out = i32Data(to),
        .slots = memory.slots,
        .edits = memory.edits,
        .edit_starts = starts[0..count],
        .edits_used = starts[count..],
    };
    job.scan.chunks = memory.chunks;
    var start: usize = 0;
    for (given, job.edit_starts, job.edits_used) |*row, *first, *used| {
        first.* = start;
        used.* = 0;
        start += editCount(row, scan.vocab);
    }
    var cost: usize = 1;
    for (given) |*row| if (job.needsSum(row)) {
        cost = weighing_cost;
    };
    launch(&job, Sample.body, cost);
    return c.KT_OK;
}

// ---- log-probabilities ----

const Logprobs = struct {
    scan: Scan,
    tokens: []const i32,
    out_token: [*]f32,
    out_ids: ?check.Rows,
    out_logprobs: ?check.Rows,
    slots: []Slot,

    fn body(self: *Logprobs, member: ?*Member) void {
        const scan = &self.scan;
        var maxima: Claims = .{ .member = member, .phase = 0, .total = scan.count() };
        while (maxima.next()) |unit| scan.findMax(unit);
        barrier(member);
        var sums: Claims = .{ .member = member, .phase = 1, .total = scan.count() };
        while (sums.next()) |unit| scan.addWeights(unit, 1);
        barrier(member);
        var finished: Claims = .{ .member = member, .phase = 2, .total = self.tokens.len };
        while (finished.next()) |row| self.finish(row, slotOf(member));
    }

    fn finish(self: *const Logprobs, row: usize, slot_index: usize) void {
        const scan = &self.scan;
        const max = scan.best(row).value;
        const log_sum = @log(scan.sum(row));
        self.out_token[row] = logprob(scan.logits.f32Row(row)[@intCast(self.tokens[row])], max, log_sum);
        const out_ids = self.out_ids orelse return;
        const ids: [*]i32 = @ptrCast(@alignCast(out_ids.data + row * out_ids.stride));
        const values = self.out_logprobs.?.f32Row(row);
        const n: usize = @intCast(out_ids.n);
        const slot = &self.slots[slot_index];
        var width: f32 = 2;
        var keys = scan.gather(row, max - width, slot.keys, scan.vocab);
        while (keys.len < n and width <= widest) {
            width *= 2;
            keys = scan.gather(row, max - width, slot.keys, scan.vocab);
        }
        if (keys.len < n) keys = scan.gather(row, -inf, slot.keys, scan.vocab);
        const found = @min(n, keys.len);
        const sorted = candidates.sort(keys, slot.other);
        scan.ctx.isa.key_values.?(sorted.ptr, values, @intCast(found));
        for (0..found) |i| {
            ids[i] = @intCast(@as(u32, @truncate(sorted[i])));
            values[i] = logprob(values[i], max, log_sum);
        }
        var at = found; // NaN logits come last, in the order of their ids
        for (scan.logits.f32Row(row)[0..scan.vocab], 0..) |logit, id| {
            if (at == n) break;
            if (!std.math.isNan(logit)) continue;
            ids[at] = @intCast(id);
            values[at] = -inf;
            at += 1;
        }
    }

    fn logprob(logit: f32, max: f32, log_sum: f64) f32 {
        if (std.math.isNan(logit)) return -inf;
        if (logit == max) return @floatCast(-log_sum);
        return @floatCast(@as(f64, logit) - max - log_sum);
    }
};

export fn kt_logprobs(
    handle: ?*c.kt_ctx_t,
    logits: ?*const c.kt_tensor_t,
    tokens: ?*const c.kt_tensor_t,
    out_token: ?*const c.kt_tensor_t,
    out_ids: ?*const c.kt_tensor_t,
    out_logprobs: ?*const c.kt_tensor_t,
) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tl = check.f32s("logits", logits, 2) orelse return invalid;
    const tt = check.i32s("tokens", tokens, 1) orelse return invalid;
    const to = check.f32s("out_token", out_token, 1) orelse return invalid;
    if (!check.size("tokens", tt, 0, tl.shape[0])) return invalid;
    if (!check.size("out_token", to, 0, tl.shape[0])) return invalid;
    if ((out_ids == null) != (out_logprobs == null)) return core.status.invalid("out_ids and out_logprobs are given together or not at all", .{});
    var job: Logprobs = .{
        .scan = scanOf(ctx, tl) orelse return invalid,
        .tokens = i32Data(tt),
        .out_token = @ptrCast(@alignCast(to.data.?)),
        .out_ids = null,
        .out_logprobs = null,
        .slots = &.{},
    };
    if (out_ids != null) {
        const ti = check.i32s("out_ids", out_ids, 2) orelse return invalid;
        const tp = check.f32s("out_logprobs", out_logprobs, 2) orelse return invalid;
        if (!check.size("out_ids", ti, 0, tl.shape[0])) return invalid;
        if (ti.shape[1] > tl.shape[1]) return core.status.invalid("out_ids has {d} columns, the vocabulary {d} ids", .{ ti.shape[1], tl.shape[1] });
        for (0..2) |i| if (!check.size("out_logprobs", tp, i, ti.shape[i])) return invalid;
        job.out_ids = check.rows("out_ids", ti) orelse return invalid;
        job.out_logprobs = check.rows("out_logprobs", tp) orelse return invalid;
    }
    for (job.tokens, 0..) |token, i| {
        if (token < 0 or token >= job.scan.vocab)
            return core.status.invalid("tokens[{d}] is {d}, the vocabulary has ids 0 to {d}", .{ i, token, job.scan.vocab - 1 });
    }
    const slots: usize = if (job.out_ids == null) 0 else ctx.pool.num_threads;
    const memory = Memory.take(ctx, job.scan.count(), slots, job.scan.vocab, false, 0) catch
        return core.status.outOfMemory(@intCast(job.scan.vocab * 24 * @max(1, slots)));
    job.scan.chunks = memory.chunks;
    job.slots = memory.slots;
    launch(&job, Logprobs.body, weighing_cost);
    return c.KT_OK;
}
