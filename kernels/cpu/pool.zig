//! The thread pool: the caller and n-1 workers run one function together. A region starts with one store to the line that
//! idle workers watch, and ends when every member that came has left; workers spin between regions and park after a while,
//! so that an idle engine costs nothing.
//!
//! No one waits for a worker that has not come: work is claimed in chunks, a barrier waits for chunks and not for threads,
//! and the caller closes the region when its work is done. A core that another program keeps busy costs its share of the
//! speed, never a whole time slice a region. What is left to wait for is a chunk whose thread lost its core within it;
//! therefore whoever has nothing to do offers its core now and then, so that other programs run there at such moments.
//!
//! Members belong to NUMA nodes. A phase may be cut into one part a member, of its own node's chunks: neighbours in memory are
//! read by one core in order, which memory and prefetchers reward, and counters of parts are shared by nobody until a member
//! that has done its own helps another, one of its node first.
const std = @import("std");
const builtin = @import("builtin");
const topology = @import("topology.zig");

/// Phases of one region, each with counters of its own.
pub const max_phases = 16;
pub const max_nodes = topology.max_nodes;

/// CPUs of one cache line's distance apart write nothing in common; neighbouring lines are fetched in pairs.
fn Padded(comptime T: type) type {
    return struct { value: T align(128) = undefined };
}

/// Low half: chunks claimed, and claims in vain. High half: chunks finished.
const Counter = Padded(std.atomic.Value(u64));
const one_claimed: u64 = 1;
const one_finished: u64 = 1 << 32;
const no_phase = max_phases;

/// A claimed chunk of a phase with parts: its number within the chunks of `node`.
pub const Placed = struct { node: u32, index: usize };

/// A member's part of its node's chunks: as many as any other of the node has, or one more.
const Share = struct {
    rank: u32 = 0,
    of: u32 = 0,

    fn first(self: Share, total: usize) usize {
        return total * self.rank / self.of;
    }

    fn end(self: Share, total: usize) usize {
        return total * (self.rank + 1) / self.of;
    }

    fn length(self: Share, total: usize) usize {
        return self.end(total) - self.first(total);
    }
};

/// One thread's part in a region.
pub const Member = struct {
    pool: *Pool,
    index: u32,
    count: u32,
    /// The NUMA node, by number within the pool, whose memory this thread is near.
    node: u32 = 0,
    phase: usize = no_phase,
    part: u32 = 0,
    parts: u32 = 0,
    exhausted: u32 = 0,
    total: usize = 0,
    /// Chunks of the part that is claimed from: the first, and how many.
    first: usize = 0,
    length: usize = 0,
    /// Chunks of the part that are claimed and not taken yet: the next, and the one after the last.
    run_next: usize = 0,
    run_end: usize = 0,
    /// Reported by the next claim: a run costs one atomic operation.
    finished: u64 = 0,
    sense: u32 = 0,
    phases_seen: u32 = 0,
    parts_seen: u32 = 0,

    /// The next chunk of a phase, or null when all `total` are claimed. A phase is claimed until null, and by all members
    /// with the same total; phases of one region have different numbers.
    pub fn claim(self: *Member, phase: usize, total: usize) ?usize {
        if (self.phase != phase) {
            self.begin(phase, total, 1);
            self.length = total;
        }
        return self.take();
    }

    /// The same where memory is near one node or another, with `each` chunks on every node of the pool: those of this
    /// member's part in order, then what others of its node have left of theirs, then those of other nodes. Of its own part
    /// it claims half of what is left at a time: an atomic operation waits for all loads before it, and while it does nothing
    /// is read ahead.
    pub fn claimPlaced(self: *Member, phase: usize, each: usize) ?Placed {
        if (self.phase != phase) {
            self.begin(phase, each, self.count);
            self.turnTo(self.index);
        }
        while (self.exhausted < self.parts) {
            if (self.take()) |index| return .{ .node = self.pool.places[self.part].node, .index = self.first + index };
            self.exhausted += 1;
            if (self.exhausted < self.parts) self.turnTo(self.pool.neighbour(self.index, self.exhausted));
        }
        return null;
    }

    /// How many chunks of the phase claimed last are claimed, in vain included: the next claim's number unless others are faster.
    pub fn peek(self: *const Member) usize {
        if (self.count == 1) return self.pool.single;
        return @as(u32, @truncate(self.pool.counter(self.phase, self.part).load(.monotonic)));
    }

    fn begin(self: *Member, phase: usize, total: usize, parts: u32) void {
        self.phase = phase;
        self.total = total;
        self.part = 0;
        self.parts = parts;
        self.exhausted = 0;
        self.run_next = 0;
        self.run_end = 0;
        self.phases_seen |= @as(u32, 1) << @intCast(phase);
        self.parts_seen = @max(self.parts_seen, parts);
        if (self.count == 1) self.pool.single = 0;
    }

    fn turnTo(self: *Member, part: u32) void {
        const share = self.pool.shares[part];
        self.part = part;
        self.first = share.first(self.total);
        self.length = share.end(self.total) - self.first;
        self.run_next = 0;
        self.run_end = 0;
    }

    fn take(self: *Member) ?usize {
        if (self.count == 1) {
            const index = self.pool.single;
            if (index >= self.length) return null;
            self.pool.single = index + 1;
            return index;
        }
        if (self.run_next < self.run_end) {
            defer self.run_next += 1;
            return self.run_next;
        }
        const is_own = self.parts > 1 and self.part == self.index;
        const run = if (is_own) @max(1, (self.length -| self.run_end) / 2) else 1;
        const before = self.pool.counter(self.phase, self.part).fetchAdd(run * one_claimed + self.finished, .release);
        const index: u32 = @truncate(before);
        self.run_next = index + 1;
        self.run_end = @min(index + run, self.length);
        self.finished = (self.run_end -| index) * one_finished;
        return if (index < self.length) index else null;
    }

    /// Waits until every chunk of the phase claimed last is finished; what they wrote is visible after.
    pub fn barrier(self: *Member) void {
        if (self.count == 1 or self.phase == no_phase) return;
        for (0..self.parts) |part| {
            const expected = if (self.parts == 1) self.total else self.pool.shares[part].length(self.total);
            const counter = self.pool.counter(self.phase, part);
            var spins: u32 = 0;
            while (counter.load(.acquire) >> 32 < expected) spinOnce(&spins);
        }
    }

    /// Waits until every thread has come here. Only in regions of runAll.
    pub fn meet(self: *Member) void {
        if (self.count == 1) return;
        self.sense +%= 1;
        const pool = self.pool;
        if (pool.arrived.value.fetchAdd(1, .acq_rel) == self.count - 1) {
            pool.arrived.value.store(0, .monotonic);
            pool.released.value.store(self.sense, .release);
            return;
        }
        var spins: u32 = 0;
        while (pool.released.value.load(.acquire) != self.sense) spinOnce(&spins);
    }
};

/// Pauses of about 25 ns before the first offer of the core, and between offers: an offer that nobody takes costs less than
/// a microsecond.
const spins_before_offer = 64;
const spins_between_offers = 64;

/// Spins, and offers the core now and then: the thread waited for may need it.
fn spinOnce(spins: *u32) void {
    std.atomic.spinLoopHint();
    spins.* +%= 1;
    if (spins.* >= spins_before_offer and spins.* % spins_between_offers == 0) std.Thread.yield() catch {};
}

pub const Body = *const fn (context: *anyopaque, member: *Member) void;

/// A region to be run again: what it does, and on what. Told where its context lies and how large it is while it is run.
pub const Recorder = struct {
    keep: *const fn (self: *Recorder, body: Body, context: []const u8) void,
};

/// What idle workers watch. Odd numbers are open regions; the even number after is the same region, closed.
const Gate = struct {
    state: std.atomic.Value(u32) align(128) = .init(0),
    body: Body = undefined,
    context: *anyopaque = undefined,
    stopping: bool = false,
};

/// The number of the region that the worker is in, and the even number after when it has left or had come too late.
const Presence = Padded(std.atomic.Value(u32));

pub const Pool = struct {
    threads: []std.Thread,
    presence: []Presence,
    num_threads: u32,
    num_nodes: u32,
    places: []topology.Place,
    spin_ns: u64,
    shares: []Share,
    /// Members by node, and where each is among them.
    ring: []u32,
    position: []u32,
    single: usize,
    gate: Gate,
    parked: Padded(std.atomic.Value(u32)),
    arrived: Padded(std.atomic.Value(u32)),
    released: Padded(std.atomic.Value(u32)),
    counters: []Counter, // [max_phases][num_threads]
    /// In tests: workers stay where they are between seeing a region open and entering it.
    hold: if (builtin.is_test) Padded(std.atomic.Value(bool)) else void = if (builtin.is_test) .{ .value = .init(false) } else {},
    /// Told of every region.
    recorder: ?*Recorder = null,
    /// Cores of the creating thread before it was given others.
    before: ?topology.Affinity = null,

    /// One thread a place, the caller being the first; `places` is copied.
    pub fn create(gpa: std.mem.Allocator, places: []const topology.Place, spin_us: u32) !*Pool {
        const num_threads: u32 = @intCast(places.len);
        std.debug.assert(num_threads >= 1);
        const self = try gpa.create(Pool);
        errdefer gpa.destroy(self);
        const threads = try gpa.alloc(std.Thread, num_threads - 1);
        errdefer gpa.free(threads);
        const presence = try gpa.alloc(Presence, num_threads - 1);
        errdefer gpa.free(presence);
        const copy = try gpa.dupe(topology.Place, places);
        errdefer gpa.free(copy);
        const shares = try gpa.alloc(Share, num_threads);
        errdefer gpa.free(shares);
        const numbers = try gpa.alloc(u32, 2 * num_threads);
        errdefer gpa.free(numbers);
        const counters = try gpa.alloc(Counter, max_phases * num_threads);
        errdefer gpa.free(counters);
        for (counters) |*one| one.value = .init(0);
        for (presence) |*one| one.value = .init(0);
        var num_nodes: u32 = 1;
        for (places) |place| num_nodes = @max(num_nodes, place.node + 1);
        self.* = .{
            .threads = threads,
            .presence = presence,
            .num_threads = num_threads,
            .num_nodes = num_nodes,
            .places = copy,
            .spin_ns = @as(u64, spin_us) * 1000,
            .shares = shares,
            .ring = numbers[0..num_threads],
            .position = numbers[num_threads..],
            .single = 0,
            .gate = .{},
            .parked = .{ .value = .init(0) },
            .arrived = .{ .value = .init(0) },
            .released = .{ .value = .init(0) },
            .counters = counters,
        };
        self.share();
        if (places[0].affinity) |mask| {
            self.before = topology.threadAffinity();
            topology.setThreadAffinity(mask);
        }
        errdefer if (self.before) |mask| topology.setThreadAffinity(mask);
        for (self.threads, 1..) |*thread, index| {
            thread.* = std.Thread.spawn(.{ .stack_size = 1 << 20 }, worker, .{ self, @as(u32, @intCast(index)) }) catch |err| {
                self.stop(index - 1);
                return err;
            };
        }
        return self;
    }

    /// Called by the thread that created the pool, which gets back the cores it had.
    pub fn destroy(self: *Pool, gpa: std.mem.Allocator) void {
        self.stop(self.threads.len);
        if (self.before) |mask| topology.setThreadAffinity(mask);
        gpa.free(self.threads);
        gpa.free(self.presence);
        gpa.free(self.places);
        gpa.free(self.shares);
        gpa.free(self.ring.ptr[0 .. 2 * self.num_threads]);
        gpa.free(self.counters);
        gpa.destroy(self);
    }

    /// Divides the chunks of a node among its members.
    fn share(self: *Pool) void {
        var next: u32 = 0;
        for (0..self.num_nodes) |node| {
            const start = next;
            for (self.places, 0..) |place, index| {
                if (place.node != node) continue;
                self.ring[next] = @intCast(index);
                self.position[index] = next;
                next += 1;
            }
            for (self.ring[start..next], 0..) |index, rank| self.shares[index] = .{ .rank = @intCast(rank), .of = next - start };
        }
    }

    /// Whom a member helps as its n-th: the others of its node, then those of the next nodes.
    fn neighbour(self: *const Pool, member: u32, n: u32) u32 {
        const mine = self.shares[member];
        const start = self.position[member] - mine.rank;
        if (n < mine.of) return self.ring[start + (mine.rank + n) % mine.of];
        return self.ring[(start + n) % self.num_threads];
    }

    fn counter(self: *Pool, phase: usize, part: usize) *std.atomic.Value(u64) {
        return &self.counters[phase * self.num_threads + part].value;
    }

    fn stop(self: *Pool, started: usize) void {
        self.gate.stopping = true;
        _ = self.open();
        for (self.threads[0..started]) |thread| thread.join();
    }

    /// Runs body(context, member) on the caller and on every worker that comes before the work is done.
    pub fn run(self: *Pool, context: anytype, comptime body: fn (@TypeOf(context), *Member) void) void {
        const Context = @TypeOf(context);
        const Erased = struct {
            fn call(erased: *anyopaque, erased_member: *Member) void {
                const typed: Context = @ptrCast(@alignCast(erased));
                body(typed, erased_member);
            }
        };
        if (self.recorder) |recorder| recorder.keep(recorder, Erased.call, std.mem.asBytes(context));
        self.runErased(Erased.call, @ptrCast(@constCast(context)));
    }

    /// The same of a region that was kept.
    pub fn runErased(self: *Pool, body: Body, context: *anyopaque) void {
        var member: Member = .{ .pool = self, .index = 0, .count = self.num_threads, .node = self.places[0].node };
        if (self.num_threads == 1) return body(context, &member);
        self.gate.body = body;
        self.gate.context = context;
        const region = self.open();
        body(context, &member);
        self.close(region);
        self.reset(&member);
    }

    /// Runs body(context, member) on every thread; members may meet().
    pub fn runAll(self: *Pool, context: anytype, comptime body: fn (@TypeOf(context), *Member) void) void {
        const Both = struct {
            context: @TypeOf(context),
            fn call(both: *const @This(), member: *Member) void {
                member.sense = member.pool.released.value.raw;
                member.meet();
                body(both.context, member);
                member.meet();
            }
        };
        const both: Both = .{ .context = context };
        self.run(&both, Both.call);
    }

    fn open(self: *Pool) u32 {
        const region = (self.gate.state.raw +% 1) | 1;
        self.gate.state.store(region, .seq_cst);
        if (self.parked.value.load(.seq_cst) > 0) std.Thread.Futex.wake(&self.gate.state, std.math.maxInt(u32));
        return region;
    }

    /// Lets no more workers in and waits for those inside. When all have come and gone there is nothing to close.
    fn close(self: *Pool, region: u32) void {
        var missing = false;
        for (self.presence) |*one| {
            var spins: u32 = 0;
            var state = one.value.load(.acquire);
            while (state == region) : (state = one.value.load(.acquire)) spinOnce(&spins);
            if (state != region +% 1) missing = true;
        }
        if (!missing) return;
        // Either the worker sees the gate closed, or it is seen here.
        self.gate.state.store(region +% 1, .seq_cst);
        for (self.presence) |*one| {
            var spins: u32 = 0;
            while (one.value.load(.seq_cst) == region) spinOnce(&spins);
        }
    }

    /// Counters of the phases that were used go back to zero; the caller has been in all of them.
    fn reset(self: *Pool, member: *const Member) void {
        var phases = member.phases_seen;
        while (phases != 0) : (phases &= phases - 1) {
            for (0..member.parts_seen) |part| self.counter(@ctz(phases), part).store(0, .monotonic);
        }
    }

    fn worker(self: *Pool, index: u32) void {
        const place = self.places[index];
        if (place.affinity) |mask| topology.setThreadAffinity(mask);
        const presence = &self.presence[index - 1].value;
        var region: u32 = 0;
        while (true) {
            region = self.waitOpen(region);
            if (self.gate.stopping) return;
            if (builtin.is_test) while (self.hold.value.load(.seq_cst)) std.Thread.sleep(std.time.ns_per_ms);
            presence.store(region, .seq_cst);
            if (self.gate.state.load(.seq_cst) == region) {
                var member: Member = .{ .pool = self, .index = index, .count = self.num_threads, .node = place.node };
                self.gate.body(self.gate.context, &member);
            }
            presence.store(region +% 1, .release);
        }
    }

    /// The number of the next open region after the one seen last.
    fn waitOpen(self: *Pool, seen: u32) u32 {
        var spins: u32 = 0;
        var timer: ?std.time.Timer = null;
        while (true) {
            const state = self.gate.state.load(.acquire);
            if (state & 1 == 1 and state != seen) return state;
            spinOnce(&spins);
            if (spins % 1024 != 0) continue;
            if (timer) |*running| {
                if (running.read() >= self.spin_ns) self.park(state);
            } else {
                timer = std.time.Timer.start() catch null;
                if (timer == null) self.park(state);
            }
        }
    }

    fn park(self: *Pool, state: u32) void {
        _ = self.parked.value.fetchAdd(1, .seq_cst);
        std.Thread.Futex.wait(&self.gate.state, state);
        _ = self.parked.value.fetchSub(1, .seq_cst);
    }
};

const Sum = struct {
    total: std.atomic.Value(u64) = .init(0),
    seen_late: std.atomic.Value(bool) = .init(false),
    marks: [1000]u8 = [_]u8{0} ** 1000,

    fn body(self: *Sum, member: *Member) void {
        while (member.claim(0, 1000)) |i| {
            _ = self.total.fetchAdd(i, .monotonic);
            self.marks[i] = 1;
        }
        member.barrier();
        for (self.marks) |mark| if (mark != 1) self.seen_late.store(true, .monotonic);
        while (member.claim(1, 10)) |i| _ = self.total.fetchAdd(i, .monotonic);
        member.barrier();
        while (member.claim(2, 3)) |i| _ = self.total.fetchAdd(i, .monotonic);
    }

    fn together(self: *Sum, member: *Member) void {
        self.marks[member.index] = 1;
        member.meet();
        for (self.marks[0..member.count]) |mark| if (mark != 1) self.seen_late.store(true, .monotonic);
    }
};

fn placesOf(gpa: std.mem.Allocator, threads: u32, nodes: u32) ![]topology.Place {
    const places = try gpa.alloc(topology.Place, threads);
    for (places, 0..) |*place, i| place.* = .{ .node = @intCast(i % nodes) };
    return places;
}

fn createTest(threads: u32, nodes: u32, spin_us: u32) !*Pool {
    const gpa = std.testing.allocator;
    const places = try placesOf(gpa, threads, nodes);
    defer gpa.free(places);
    return Pool.create(gpa, places, spin_us);
}

test "every chunk is claimed once, barriers hold, over many regions and parked workers" {
    for ([_]u32{ 1, 2, 3, 5 }) |threads| {
        const pool = try createTest(threads, 1, 50);
        defer pool.destroy(std.testing.allocator);
        for (0..500) |round| {
            var sum: Sum = .{};
            pool.run(&sum, Sum.body);
            try std.testing.expectEqual(@as(u64, 499_500 + 45 + 3), sum.total.raw);
            try std.testing.expect(!sum.seen_late.raw);
            if (round % 50 == 0) {
                var all: Sum = .{};
                pool.runAll(&all, Sum.together);
                try std.testing.expect(!all.seen_late.raw);
                std.Thread.sleep(2 * std.time.ns_per_ms);
            }
        }
    }
}

const Parts = struct {
    const each = 50;
    nodes: usize,
    marks: [max_nodes][64]std.atomic.Value(u32) = [_][64]std.atomic.Value(u32){[_]std.atomic.Value(u32){.init(0)} ** 64} ** max_nodes,
    missed: std.atomic.Value(u32) = .init(0),

    fn body(self: *Parts, member: *Member) void {
        while (member.claimPlaced(3, each)) |at| {
            _ = self.marks[at.node][at.index].fetchAdd(1, .monotonic);
        }
        member.barrier();
        for (self.marks[0..self.nodes]) |*part| for (part[0..each]) |*mark| {
            if (mark.load(.monotonic) != 1) _ = self.missed.fetchAdd(1, .monotonic);
        };
        while (member.claim(4, 1)) |_| {}
    }
};

test "parts of nodes are claimed once each, and no node is left behind" {
    const gpa = std.testing.allocator;
    for ([_][2]u32{ .{ 1, 1 }, .{ 2, 2 }, .{ 3, 2 }, .{ 4, 3 } }) |shape| {
        const pool = try createTest(shape[0], shape[1], 50);
        defer pool.destroy(gpa);
        for (0..200) |_| {
            var parts: Parts = .{ .nodes = shape[1] };
            pool.run(&parts, Parts.body);
            try std.testing.expectEqual(@as(u32, 0), parts.missed.raw);
            for (parts.marks, 0..) |marks, node| for (marks, 0..) |mark, index| {
                try std.testing.expectEqual(@as(u32, @intFromBool(node < shape[1] and index < Parts.each)), mark.raw);
            };
        }
    }
}

test "a member claims from its own node before it helps another" {
    const gpa = std.testing.allocator;
    const pool = try createTest(2, 2, 1_000_000);
    defer pool.destroy(gpa);
    pool.hold.value.store(true, .seq_cst);
    const Order = struct {
        nodes: [2 * 3]u32 = undefined,
        fn body(self: *@This(), member: *Member) void {
            var count: usize = 0;
            while (member.claimPlaced(0, 3)) |at| : (count += 1) self.nodes[count] = at.node;
        }
    };
    var order: Order = .{};
    pool.run(&order, Order.body);
    pool.hold.value.store(false, .seq_cst);
    try std.testing.expectEqualSlices(u32, &.{ 0, 0, 0, 1, 1, 1 }, &order.nodes);
}

const Alone = struct {
    by: [3][8]u32 = [_][8]u32{[_]u32{99} ** 8} ** 3,

    fn body(self: *Alone, member: *Member) void {
        for (&self.by, 0..) |*phase, number| {
            while (member.claim(number, phase.len)) |i| phase[i] = member.index;
            member.barrier();
        }
    }
};

test "a region ends without a worker that has lost its core, and that worker finds it over" {
    const gpa = std.testing.allocator;
    const pool = try createTest(2, 1, 1_000_000);
    defer pool.destroy(gpa);
    pool.hold.value.store(true, .seq_cst);
    for (0..100) |_| {
        var alone: Alone = .{};
        pool.run(&alone, Alone.body);
        for (alone.by) |phase| for (phase) |index| try std.testing.expectEqual(@as(u32, 0), index);
    }
    pool.hold.value.store(false, .seq_cst);
    // the worker comes back and shares the work again
    var rounds: u32 = 0;
    var shared = false;
    while (!shared) : (rounds += 1) {
        if (rounds == 1_000_000) return error.WorkerIsLost;
        var alone: Alone = .{};
        pool.run(&alone, Alone.body);
        for (alone.by) |phase| for (phase) |index| {
            try std.testing.expect(index < 2);
            if (index == 1) shared = true;
        };
    }
}

test "a pinned pool gives its creator the cores back, and hides none from the next" {
    if (builtin.os.tag != .linux) return error.SkipZigTest;
    const gpa = std.testing.allocator;
    const cpuid = @import("cpuid.zig");
    const found = try cpuid.cores(gpa);
    defer found.deinit(gpa);
    const before = topology.threadAffinity().?;
    const places = try found.topology.places(gpa, 1, 1, true);
    defer gpa.free(places);
    const pool = try Pool.create(gpa, places, 100);
    try std.testing.expectEqual(places[0].affinity.?, topology.threadAffinity().?);
    const pinned = try cpuid.cores(gpa);
    defer pinned.deinit(gpa);
    try std.testing.expectEqualSlices(topology.Cpu, found.topology.cpus, pinned.topology.cpus);
    pool.destroy(gpa);
    try std.testing.expectEqual(before, topology.threadAffinity().?);
}
