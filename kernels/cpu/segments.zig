//! The segments of a ragged batch whose sequences keep a state, checked and joined into chains that run independently.
const core = @import("core");
const check = @import("check.zig");
const c = core.c;
const status = core.status;

pub const Segments = struct {
    start: []const i32,
    source: []const i32,
    target: []const i32,
    chains: usize,

    /// Null with the error recorded. `slots` is what the state tensor holds.
    pub fn from(given: ?*const c.kt_state_segments_t, tokens: i64, slots: i64) ?Segments {
        const s = given orelse return fail("segments are NULL", .{});
        if (s.struct_size < @sizeOf(c.kt_state_segments_t)) return fail("segments.struct_size is {d}", .{s.struct_size});
        const start = ints("segments.start", s.start) orelse return null;
        const source = ints("segments.source", s.source) orelse return null;
        const target = ints("segments.target", s.target) orelse return null;
        if (start.len != source.len + 1 or target.len != source.len)
            return fail("segments.start has {d} entries, source {d} and target {d}", .{ start.len, source.len, target.len });
        if (start[0] != 0 or start[source.len] != tokens)
            return fail("segments.start runs from {d} to {d}, expected 0 to {d}", .{ start[0], start[source.len], tokens });
        var chains: usize = 0;
        for (source, target, 0..) |from_slot, to_slot, g| {
            if (start[g + 1] <= start[g]) return fail("segments.start[{d}] is {d} after {d}", .{ g + 1, start[g + 1], start[g] });
            if (from_slot < -1 or from_slot >= slots) return fail("segments.source[{d}] is {d}, there are {d} slots", .{ g, from_slot, slots });
            if (to_slot < 0 or to_slot >= slots) return fail("segments.target[{d}] is {d}, there are {d} slots", .{ g, to_slot, slots });
            if (g == 0 or from_slot != target[g - 1]) chains += 1;
        }
        return .{ .start = start, .source = source, .target = target, .chains = chains };
    }

    pub fn count(self: *const Segments) usize {
        return self.source.len;
    }

    /// The first segment of each chain, then the number of segments; out has chains + 1 entries.
    pub fn writeChains(self: *const Segments, out: []u32) void {
        var chain: usize = 0;
        for (self.source, 0..) |from_slot, g| if (g == 0 or from_slot != self.target[g - 1]) {
            out[chain] = @intCast(g);
            chain += 1;
        };
        out[chain] = @intCast(self.source.len);
    }
};

fn ints(comptime name: []const u8, given: ?*const c.kt_tensor_t) ?[]const i32 {
    const t = check.i32s(name, given, 1) orelse return null;
    return @as([*]const i32, @ptrCast(@alignCast(t.data.?)))[0..@intCast(t.shape[0])];
}

fn fail(comptime fmt: []const u8, args: anytype) ?Segments {
    _ = status.invalid(fmt, args);
    return null;
}
