//! Graphs: while one is made, ops are kept with their arguments instead of being computed; a launch computes them all with one call.
//! An op needs nothing of its own for that: root.zig exports each `pub fn kt_*` of the ops' files through `exportOp`.
const std = @import("std");
const core = @import("core");
const ctxs = @import("ctx.zig");
const c = core.c;
const status = core.status;
const pool = @import("pool.zig");
const turns = @import("turns.zig");
const Ctx = ctxs.Ctx;
const Status = status.Status;

const magic: u64 = 0x6b745f6772610001; // "kt_gra"

/// Ops that do nothing but run one region whose description depends on their arguments alone: its tasks, weights and scratch memory
/// are the same in every launch. The first launch keeps it, later ones run it and neither check nor plan anything.
const fixed_ops = .{ "kt_linear", "kt_norm_linear", "kt_linear_residual", "kt_gate_up_act", "kt_qkv_rope_store", "kt_rms_norm", "kt_add_rms_norm" };

/// An op and where its arguments lie.
const Call = struct {
    compute: *const fn (arguments: *const anyopaque) Status,
    arguments: *const anyopaque,
    is_fixed: bool,
    region: ?Region = null,
    /// What the next launch reads of it: asked for while the call before is computed, since the weights that pass through the
    /// caches between two launches leave nothing there.
    memory: []const u8,
};

const Region = struct { body: pool.Body, context: []align(region_align) u8 };
const region_align = 64;
const line = 64;
const max_ahead = 2048;

pub const Graph = struct {
    magic: u64 = magic,
    ctx: *Ctx,
    /// Holds the arguments, and descriptors and option structs that they point to.
    memory: std.heap.ArenaAllocator,
    calls: std.ArrayListUnmanaged(Call) = .empty,
    /// Why it cannot be launched: an op that cannot be kept, or no memory.
    failure: Status = c.KT_OK,
    /// Of the context, when regions were kept.
    scratch_moves: u32 = 0,
    precision: u32 = 0,

    pub fn destroy(self: *Graph) void {
        self.magic = 0;
        for (self.calls.items) |*call| self.forget(call);
        self.calls.deinit(ctxs.gpa);
        self.memory.deinit();
        ctxs.gpa.destroy(self);
    }

    fn keep(self: *Graph, comptime op: anytype, comptime is_fixed: bool, arguments: Arguments(op)) Status {
        const Computed = struct {
            fn compute(kept: *const anyopaque) Status {
                const typed: *const Arguments(op) = @ptrCast(@alignCast(kept));
                return @call(.auto, op, typed.*);
            }
        };
        if (self.failure != c.KT_OK) return status.fail(self.failure, "an earlier op of this graph cannot be kept", .{});
        const gpa = self.memory.allocator();
        const kept = gpa.create(Arguments(op)) catch return self.exhausted();
        inline for (arguments, 0..) |argument, i| {
            const T = @TypeOf(argument);
            if (comptime !isKept(T)) {
                self.failure = c.KT_ERR_UNSUPPORTED;
                return status.unsupported("an op whose argument {d} is changed by the call cannot be part of a graph", .{i});
            }
            kept[i] = copyOf(gpa, T, argument) catch return self.exhausted();
        }
        // what was copied follows the arguments, unless the arena went on elsewhere
        const end = @intFromPtr(gpa.create(u8) catch return self.exhausted());
        const start: [*]const u8 = @ptrCast(kept);
        const memory = start[0..std.math.clamp(end -% @intFromPtr(kept), @sizeOf(Arguments(op)), max_ahead)];
        self.calls.append(ctxs.gpa, .{ .compute = Computed.compute, .arguments = kept, .is_fixed = is_fixed, .memory = memory }) catch return self.exhausted();
        return c.KT_OK;
    }

    fn launch(self: *Graph) Status {
        const computed = self.compute();
        if (computed != c.KT_OK) if (self.ctx.turns) |head| turns.giveUp(head);
        return computed;
    }

    fn compute(self: *Graph) Status {
        const calls = self.calls.items;
        if (self.scratch_moves != self.ctx.scratch_moves or self.precision != self.ctx.precision) for (calls) |*call| self.forget(call);
        // scratch memory that moves within this launch makes the next one keep regions again
        self.scratch_moves = self.ctx.scratch_moves;
        self.precision = self.ctx.precision;
        for (calls, 1..) |*call, next| {
            if (next < calls.len) ahead(&calls[next]);
            if (call.region) |region| {
                self.ctx.pool.runErased(region.body, region.context.ptr);
                continue;
            }
            const computed = if (call.is_fixed) self.computeAndKeep(call) else call.compute(call.arguments);
            if (computed != c.KT_OK) return computed;
        }
        return c.KT_OK;
    }

    fn ahead(call: *const Call) void {
        const bytes = if (call.region) |region| region.context else call.memory;
        var at: usize = 0;
        while (at < bytes.len) : (at += line) @prefetch(bytes.ptr + at, .{});
    }

    fn computeAndKeep(self: *Graph, call: *Call) Status {
        var kept: Kept = .{ .call = call };
        self.ctx.pool.recorder = &kept.recorder;
        defer self.ctx.pool.recorder = null;
        const computed = call.compute(call.arguments);
        if (kept.regions != 1 or computed != c.KT_OK) self.forget(call);
        return computed;
    }

    fn forget(_: *Graph, call: *Call) void {
        const region = call.region orelse return;
        ctxs.gpa.free(region.context);
        call.region = null;
    }

    fn exhausted(self: *Graph) Status {
        self.failure = c.KT_ERR_OUT_OF_MEMORY;
        return status.outOfMemory(@sizeOf(Call));
    }
};

/// A launch by a thread of its own. The context's next op waits for it and leaves its failure to kt_ctx_synchronize.
pub const Started = struct {
    thread: ?std.Thread = null,
    graph: *Graph,
    status: Status = c.KT_OK,
    text: [256]u8 = undefined,
    length: usize = 0,

    threadlocal var is_here = false;

    fn run(self: *Started) void {
        is_here = true;
        self.status = self.graph.launch();
        if (self.status == c.KT_OK) return;
        const text = std.mem.span(status.kt_last_error());
        self.length = @min(text.len, self.text.len);
        @memcpy(self.text[0..self.length], text[0..self.length]);
    }

    /// Waits for the thread, unless it is the caller's own.
    pub fn join(self: *Started) void {
        if (is_here) return;
        const thread = self.thread orelse return;
        thread.join();
        self.thread = null;
    }

    pub fn report(self: *const Started) Status {
        if (self.status == c.KT_OK) return c.KT_OK;
        return status.fail(self.status, "{s}", .{self.text[0..self.length]});
    }

    pub fn destroy(self: *Started) void {
        self.join();
        ctxs.gpa.destroy(self);
    }
};

/// Keeps the region of one call.
const Kept = struct {
    recorder: pool.Recorder = .{ .keep = keep },
    call: *Call,
    regions: u32 = 0,

    fn keep(recorder: *pool.Recorder, body: pool.Body, context: []const u8) void {
        const self: *Kept = @fieldParentPtr("recorder", recorder);
        self.regions += 1;
        if (self.regions > 1) return;
        const copy = ctxs.gpa.alignedAlloc(u8, .fromByteUnits(region_align), context.len) catch return;
        @memcpy(copy, context);
        self.call.region = .{ .body = body, .context = copy };
    }
};

fn Arguments(comptime op: anytype) type {
    return std.meta.ArgsTuple(@TypeOf(op));
}

/// What a pointer argument points to; null for values.
fn Pointee(comptime T: type) ?type {
    return switch (@typeInfo(T)) {
        .optional => |optional| Pointee(optional.child),
        .pointer => |pointer| pointer.child,
        else => null,
    };
}

fn isConst(comptime T: type) bool {
    return switch (@typeInfo(T)) {
        .optional => |optional| isConst(optional.child),
        .pointer => |pointer| pointer.is_const,
        else => true,
    };
}

/// Values, addresses, descriptors and option structs can be kept; what a call writes to its caller cannot.
fn isKept(comptime T: type) bool {
    const Child = Pointee(T) orelse return true;
    return isAddress(Child) or isConst(T);
}

fn isAddress(comptime Child: type) bool {
    return @typeInfo(Child) == .@"opaque";
}

/// An argument, or a field of one, with a copy of what it points to.
fn copyOf(gpa: std.mem.Allocator, comptime T: type, value: T) error{OutOfMemory}!T {
    const Child = Pointee(T) orelse return value;
    if (comptime isAddress(Child)) return value;
    const from = @intFromPtr(value);
    if (from == 0) return value;
    const source: *const Child = @ptrFromInt(from);
    const copy = try gpa.create(Child);
    if (comptime @hasField(Child, "struct_size")) {
        // an older caller's struct ends earlier; what the op says of that it says at the launch
        copy.* = std.mem.zeroes(Child);
        const bytes = @min(source.struct_size, @sizeOf(Child));
        @memcpy(std.mem.asBytes(copy)[0..bytes], std.mem.asBytes(source)[0..bytes]);
        inline for (std.meta.fields(Child)) |field| {
            const inner = @field(copy, field.name);
            @field(copy, field.name) = try copyOf(gpa, field.type, inner);
        }
    } else {
        comptime std.debug.assert(Child == c.kt_tensor_t);
        copy.* = source.*;
    }
    return @ptrCast(copy);
}

/// Exports an op under its name: computed when it is called, or kept while a graph is made.
pub fn exportOp(comptime name: []const u8, comptime op: anytype) void {
    @export(&Exported(op, isFixed(name)).call, .{ .name = name });
}

fn isFixed(comptime name: []const u8) bool {
    for (fixed_ops) |fixed| if (std.mem.eql(u8, fixed, name)) return true;
    return false;
}

fn dispatch(comptime op: anytype, comptime is_fixed: bool, arguments: Arguments(op)) Status {
    if (arguments[0]) |handle| {
        const ctx: *const Ctx = @ptrCast(@alignCast(handle));
        if (ctx.isAlive()) if (ctx.recording) |graph| return graph.keep(op, is_fixed, arguments);
    }
    return @call(.always_inline, op, arguments);
}

/// A C function with the op's parameters, whose list only a switch over its length can make.
fn Exported(comptime op: anytype, comptime is_fixed: bool) type {
    const params = @typeInfo(@TypeOf(op)).@"fn".params;
    const P = struct {
        fn at(comptime i: usize) type {
            return params[i].type.?;
        }
    }.at;
    return switch (params.len) {
        2 => struct {
            fn call(a: P(0), b: P(1)) callconv(.c) Status {
                return dispatch(op, is_fixed, .{ a, b });
            }
        },
        3 => struct {
            fn call(a: P(0), b: P(1), d: P(2)) callconv(.c) Status {
                return dispatch(op, is_fixed, .{ a, b, d });
            }
        },
        4 => struct {
            fn call(a: P(0), b: P(1), d: P(2), e: P(3)) callconv(.c) Status {
                return dispatch(op, is_fixed, .{ a, b, d, e });
            }
        },
        5 => struct {
            fn call(a: P(0), b: P(1), d: P(2), e: P(3), f: P(4)) callconv(.c) Status {
                return dispatch(op, is_fixed, .{ a, b, d, e, f });
            }
        },
        6 => struct {
            fn call(a: P(0), b: P(1), d: P(2), e: P(3), f: P(4), g: P(5)) callconv(.c) Status {
                return dispatch(op, is_fixed, .{ a, b, d, e, f, g });
            }
        },
        7 => struct {
            fn call(a: P(0), b: P(1), d: P(2), e: P(3), f: P(4), g: P(5), h: P(6)) callconv(.c) Status {
                return dispatch(op, is_fixed, .{ a, b, d, e, f, g, h });
            }
        },
        8 => struct {
            fn call(a: P(0), b: P(1), d: P(2), e: P(3), f: P(4), g: P(5), h: P(6), i: P(7)) callconv(.c) Status {
                return dispatch(op, is_fixed, .{ a, b, d, e, f, g, h, i });
            }
        },
        9 => struct {
            fn call(a: P(0), b: P(1), d: P(2), e: P(3), f: P(4), g: P(5), h: P(6), i: P(7), j: P(8)) callconv(.c) Status {
                return dispatch(op, is_fixed, .{ a, b, d, e, f, g, h, i, j });
            }
        },
        10 => struct {
            fn call(a: P(0), b: P(1), d: P(2), e: P(3), f: P(4), g: P(5), h: P(6), i: P(7), j: P(8), k: P(9)) callconv(.c) Status {
                return dispatch(op, is_fixed, .{ a, b, d, e, f, g, h, i, j, k });
            }
        },
        12 => struct {
            fn call(a: P(0), b: P(1), d: P(2), e: P(3), f: P(4), g: P(5), h: P(6), i: P(7), j: P(8), k: P(9), l: P(10), m: P(11)) callconv(.c) Status {
                return dispatch(op, is_fixed, .{ a, b, d, e, f, g, h, i, j, k, l, m });
            }
        },
        else => @compileError("an op of so many parameters needs a line here"),
    };
}

fn graphOf(handle: ?*c.kt_graph_t) ?*Graph {
    const graph: *Graph = @ptrCast(@alignCast(handle orelse {
        _ = status.invalid("graph is NULL", .{});
        return null;
    }));
    if (graph.magic == magic) return graph;
    _ = status.invalid("not a graph, or one that was destroyed", .{});
    return null;
}

export fn kt_graph_begin(handle: ?*c.kt_ctx_t) Status {
    const ctx = ctxs.from(handle) orelse return c.KT_ERR_INVALID_ARG;
    if (ctx.recording != null) return status.invalid("a graph is being made already", .{});
    const graph = ctxs.gpa.create(Graph) catch return status.outOfMemory(@sizeOf(Graph));
    graph.* = .{ .ctx = ctx, .memory = .init(ctxs.gpa) };
    ctx.recording = graph;
    return c.KT_OK;
}

export fn kt_graph_end(handle: ?*c.kt_ctx_t, out: ?*?*c.kt_graph_t) Status {
    const ctx = ctxs.from(handle) orelse return c.KT_ERR_INVALID_ARG;
    const slot = out orelse return status.invalid("out is NULL", .{});
    slot.* = null;
    const graph = ctx.recording orelse return status.invalid("no graph was begun", .{});
    ctx.recording = null;
    if (graph.failure != c.KT_OK) {
        const failure = graph.failure;
        graph.destroy();
        return status.fail(failure, "an op of this graph cannot be kept", .{});
    }
    slot.* = @ptrCast(graph);
    return c.KT_OK;
}

/// The graph, if it can be launched in the context.
fn launchable(handle: ?*c.kt_ctx_t, given: ?*c.kt_graph_t) ?*Graph {
    const ctx = ctxs.from(handle) orelse return null;
    const graph = graphOf(given) orelse return null;
    if (graph.ctx == ctx and ctx.recording == null) return graph;
    if (graph.ctx != ctx) _ = status.invalid("the graph is of another context", .{}) else _ = status.invalid("a graph cannot be part of another", .{});
    return null;
}

export fn kt_graph_launch(handle: ?*c.kt_ctx_t, given: ?*c.kt_graph_t) Status {
    const graph = launchable(handle, given) orelse return c.KT_ERR_INVALID_ARG;
    return graph.launch();
}

export fn kt_graph_start(handle: ?*c.kt_ctx_t, given: ?*c.kt_graph_t) Status {
    const graph = launchable(handle, given) orelse return c.KT_ERR_INVALID_ARG;
    if (graph.ctx.started != null) return status.invalid("a graph was started and not waited for", .{});
    const started = ctxs.gpa.create(Started) catch return status.outOfMemory(@sizeOf(Started));
    started.* = .{ .graph = graph };
    started.thread = std.Thread.spawn(.{}, Started.run, .{started}) catch |err| {
        ctxs.gpa.destroy(started);
        return status.fail(c.KT_ERR_INTERNAL, "cannot start a thread: {s}", .{@errorName(err)});
    };
    graph.ctx.started = started;
    return c.KT_OK;
}

export fn kt_graph_destroy(given: ?*c.kt_graph_t) void {
    const graph = graphOf(given) orelse return;
    graph.destroy();
}

test "a graph is made, launched and refused where it is not one" {
    const handle = try ctxs.ofOneThread();
    defer ctxs.kt_ctx_destroy(handle);
    var graph: ?*c.kt_graph_t = null;
    try std.testing.expectEqual(c.KT_ERR_INVALID_ARG, kt_graph_end(handle, &graph));
    try std.testing.expectEqual(c.KT_OK, kt_graph_begin(handle));
    try std.testing.expectEqual(c.KT_ERR_INVALID_ARG, kt_graph_begin(handle));
    const rms_norm = @import("rms_norm.zig").kt_rms_norm;
    var values = [_]f32{ 3, 4 };
    const tensor: c.kt_tensor_t = .{ .data = &values, .shape = .{ 2, 1, 1, 1 }, .stride = .{ 4, 0, 0, 0 }, .dtype = c.KT_F32, .ndim = 1, .device = 0, .flags = 0 };
    {
        // the descriptor is gone when the graph is launched
        var copy = tensor;
        try std.testing.expectEqual(c.KT_OK, Exported(rms_norm, true).call(handle, &copy, null, 0, 0, &copy));
        copy.data = null;
    }
    try std.testing.expectEqual(@as(f32, 3), values[0]);
    try std.testing.expectEqual(c.KT_OK, kt_graph_end(handle, &graph));
    try std.testing.expectEqual(c.KT_OK, kt_graph_launch(handle, graph));
    try std.testing.expectApproxEqAbs(@as(f32, 3.0 / @sqrt(12.5)), values[0], 1e-6);
    kt_graph_destroy(graph);
    try std.testing.expectEqual(c.KT_ERR_INVALID_ARG, kt_graph_launch(handle, null));
    // one that is begun and never ended goes with its context
    try std.testing.expectEqual(c.KT_OK, kt_graph_begin(handle));
}
