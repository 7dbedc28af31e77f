//! kt_sample. Rows are scanned for their maxima and sums of weights. What decides a draw is then looked for among the few
//! tokens near the maximum, in a range that widens until it holds enough; when that would be many, in a histogram of the
//! row, of which only the bins that decide are sorted.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const candidates = @import("candidates.zig");
const logits_scan = @import("logits_scan.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const invalid = c.KT_ERR_INVALID_ARG;
const inf = std.math.inf(f32);
const Bins = @import("logits_bins.zig").Bins;
const Scan = logits_scan.Scan;
const Slot = logits_scan.Slot;
const Edit = logits_scan.Edit;
const chain = @import("sampling_chain.zig");
const widest = logits_scan.widest;

/// More tokens than this near the maximum are not sorted.
pub const most_sorted = 4096;

pub fn penalises(row: *const c.kt_sampling_row_t) bool {
    return row.history_len > 0 and
        (row.repetition_penalty != 1 or row.presence_penalty != 0 or row.frequency_penalty != 0);
}

fn editCount(row: *const c.kt_sampling_row_t, vocab: usize) usize {
    const bias: usize = @intCast(row.bias_len);
    const history: usize = @intCast(row.history_len);
    const dry: usize = @intCast(row.dry_len);
    return bias + dry + if (penalises(row)) @min(history, vocab) else 0;
}

pub const Sample = struct {
    scan: Scan,
    rows: []c.kt_sampling_row_t,
    out: []i32,
    slots: []Slot,
    edits: []Edit,
    edits_used: []usize, // by row; its room begins at edit_starts
    edit_starts: []usize,

    fn isGreedy(row: *const c.kt_sampling_row_t) bool {
        return !chain.isNeeded(row) and (row.temperature == 0 or row.top_k == 1);
    }

    fn topK(self: *const Sample, row: *const c.kt_sampling_row_t) ?usize {
        const k: usize = @intCast(row.top_k);
        return if (k == 0 or k >= self.scan.vocab) null else k;
    }

    /// Whether the mass of the whole row matters: not when only the best few or those of a bounded weight are drawn.
    fn needsSum(self: *const Sample, row: *const c.kt_sampling_row_t) bool {
        return !chain.isNeeded(row) and !isGreedy(row) and self.topK(row) == null and (row.top_p < 1 or row.min_p == 0);
    }

    pub fn inverseTemperature(row: *const c.kt_sampling_row_t) f32 {
        return @min(1 / row.temperature, std.math.floatMax(f32));
    }

    fn body(self: *Sample, member: ?*Member) void {
        const scan = &self.scan;
        const slot = &self.slots[logits_scan.slotOf(member)];
        if (self.edits.len > 0) {
            var edited: logits_scan.Claims = .{ .member = member, .phase = 0, .total = self.rows.len };
            while (edited.next()) |row| self.edit(row, slot);
            logits_scan.barrier(member);
        }
        var maxima: logits_scan.Claims = .{ .member = member, .phase = 1, .total = scan.count() };
        while (maxima.next()) |unit| scan.findMax(unit);
        logits_scan.barrier(member);
        var sums: logits_scan.Claims = .{ .member = member, .phase = 2, .total = scan.count() };
        while (sums.next()) |unit| {
            const row = &self.rows[unit / scan.chunks_per_row];
            if (self.needsSum(row)) scan.addWeights(unit, inverseTemperature(row));
        }
        logits_scan.barrier(member);
        var finished: logits_scan.Claims = .{ .member = member, .phase = 3, .total = self.rows.len };
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
        self.edits_used[index] = used;
        if (chain.isNeeded(row)) return; // where it is their turn
        self.penalise(index, slot, 1);
        self.subtractDry(index, 1);
    }

    /// Counts the history in slot.seen: bit 0 for each token that it holds, 2 for each time in the output.
    pub fn count(row: *const c.kt_sampling_row_t, slot: *const Slot) void {
        @memset(slot.seen, 0);
        for (row.history[0..@intCast(row.history_len)], 0..) |token, i| {
            const id: u32 = @intCast(token);
            slot.seen[id] |= 1;
            if (i >= row.prompt_len) slot.seen[id] += 2;
        }
    }

    /// What the penalties make of a logit that was multiplied by `scale`.
    pub fn penalised(row: *const c.kt_sampling_row_t, logit: f32, seen: u32, scale: f32) f32 {
        const repeated = if (logit > 0) logit / row.repetition_penalty else logit * row.repetition_penalty;
        const times: f32 = @floatFromInt(seen >> 1);
        if (times == 0) return repeated;
        return repeated - (row.presence_penalty + times * row.frequency_penalty) / scale;
    }

    /// Changes the logits of a row that the draw sees multiplied by `scale`.
    pub fn penalise(self: *Sample, index: usize, slot: *const Slot, scale: f32) void {
        const row = &self.rows[index];
        if (!penalises(row)) return;
        const logits = self.scan.logits.f32Row(index);
        const room = self.edits[self.edit_starts[index]..];
        var used = self.edits_used[index];
        count(row, slot);
        for (row.history[0..@intCast(row.history_len)]) |token| {
            const id: u32 = @intCast(token);
            if (slot.seen[id] == 0) continue;
            room[used] = .{ .id = id, .old = logits[id] };
            used += 1;
            logits[id] = penalised(row, logits[id], slot.seen[id], scale);
            slot.seen[id] = 0; // done
        }
        self.edits_used[index] = used;
    }

    pub fn subtractDry(self: *Sample, index: usize, scale: f32) void {
        const row = &self.rows[index];
        const logits = self.scan.logits.f32Row(index);
        const room = self.edits[self.edit_starts[index]..];
        var used = self.edits_used[index];
        for (0..@intCast(row.dry_len)) |i| {
            const id: u32 = @intCast(row.dry_ids[i]);
            room[used] = .{ .id = id, .old = logits[id] };
            used += 1;
            logits[id] -= row.dry_penalties[i] / scale;
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

    fn draw(self: *Sample, index: usize, slot: *const Slot) usize {
        const row = &self.rows[index];
        const best = self.scan.best(index);
        const greedy = best.index orelse return 0;
        if (isGreedy(row) or best.value == -inf) return greedy;
        if (chain.isNeeded(row)) return chain.draw(self, index, slot);
        return self.drawFiltered(row, index, slot, best.value, if (self.needsSum(row)) self.scan.sum(index) else 0);
    }

    /// Temperature, top-k, top-p, min-p and the draw; `total` is the row's mass where that matters.
    pub fn drawFiltered(self: *const Sample, row: *const c.kt_sampling_row_t, index: usize, slot: *const Slot, max: f32, total: f64) usize {
        const isa = self.scan.ctx.isa;
        const inv_temperature = inverseTemperature(row);
        const top_k = self.topK(row);
        var mass = total;
        const keys = self.head(row, index, slot, max, mass) orelse return self.drawFromBins(row, index, slot, max);
        const n = if (top_k) |k| @min(k, keys.len) else keys.len;
        const weights = slot.weights[0..n];
        isa.key_values.?(keys.ptr, weights.ptr, @intCast(n));
        isa.weight_row.?(weights.ptr, max, inv_temperature, @intCast(n));
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
    fn head(self: *const Sample, row: *const c.kt_sampling_row_t, index: usize, slot: *const Slot, max: f32, total: f64) ?[]u64 {
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
    fn drawFromBins(self: *const Sample, row: *const c.kt_sampling_row_t, index: usize, slot: *const Slot, max: f32) usize {
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
    const wrong: ?chain.Wrong = if (!(finite(row.temperature) and row.temperature >= 0))
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
    else if (row.dry_len < 0 or (row.dry_len > 0 and (row.dry_ids == null or row.dry_penalties == null)))
        .{ "dry_len", @floatFromInt(row.dry_len) }
    else
        chain.wrongField(row);
    if (wrong) |field| {
        _ = core.status.invalid("rows[{d}].{s} is {d}", .{ index, field.@"0", field.@"1" });
        return false;
    }
    if (penalises(row) and !checkIds("history", index, row.history[0..@intCast(row.history_len)], vocab)) return false;
    if (row.dry_len > 0 and !checkIds("dry_ids", index, row.dry_ids[0..@intCast(row.dry_len)], vocab)) return false;
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

pub fn kt_sample(handle: ?*c.kt_ctx_t, logits: ?*const c.kt_tensor_t, rows: ?[*]c.kt_sampling_row_t, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tl = check.f32s("logits", logits, 2) orelse return invalid;
    const to = check.i32s("out", out, 1) orelse return invalid;
    if (!check.size("out", to, 0, tl.shape[0])) return invalid;
    const count: usize = @intCast(tl.shape[0]);
    const given = (rows orelse return core.status.invalid("rows is NULL", .{}))[0..count];
    const scan = logits_scan.scanOf(ctx, tl) orelse return invalid;
    var edits: usize = 0;
    var seen = false;
    for (given, 0..) |*row, index| {
        if (!checkRow(index, row, scan.vocab)) return invalid;
        edits += editCount(row, scan.vocab);
        seen = seen or penalises(row) or (row.dry_len > 0 and chain.isNeeded(row));
    }
    var starts_buffer: [256]usize = undefined;
    const starts = if (2 * count <= starts_buffer.len)
        starts_buffer[0 .. 2 * count]
    else
        ctx_mod.gpa.alloc(usize, 2 * count) catch return core.status.outOfMemory(@intCast(16 * count));
    defer if (2 * count > starts_buffer.len) ctx_mod.gpa.free(starts);
    const memory = logits_scan.Memory.take(ctx, scan.count(), ctx.pool.num_threads, scan.vocab, seen, edits) catch
        return core.status.outOfMemory(@intCast(scan.vocab * 24 * ctx.pool.num_threads));
    var job: Sample = .{
        .scan = scan,
        .rows = given,
        .out = logits_scan.i32Data(to),
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
    for (given) |*row| if (job.needsSum(row) or chain.isNeeded(row)) {
        cost = logits_scan.weighing_cost;
    };
    logits_scan.launch(&job, Sample.body, cost);
    return c.KT_OK;
}
