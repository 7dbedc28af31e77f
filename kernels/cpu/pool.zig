//! The thread pool: the caller and n-1 pinned workers run one function together. A region starts with one store and ends
//! with one counter; workers spin between regions and park after a while, so that an idle engine costs nothing.
const std = @import("std");
const builtin = @import("builtin");

/// Work is cut into chunks that members claim from a counter, so that a stalled core delays no one else.
pub const max_phases = 16;

/// CPUs of one cache line's distance apart write nothing in common.
fn Padded(comptime T: type) type {
    return struct { value: T align(128) = undefined };
}

const Counter = Padded(std.atomic.Value(u32));

/// One thread's part in a region.
pub const Member = struct {
    pool: *Pool,
    index: u32,
    count: u32,
    sense: u32 = 0,

    /// The next chunk of a phase, or null when all `total` are claimed. Phases of one region have different numbers.
    pub fn claim(self: *Member, phase: usize, total: usize) ?usize {
        if (self.count == 1) {
            const next = self.pool.single[phase];
            if (next >= total) return null;
            self.pool.single[phase] = @intCast(next + 1);
            return next;
        }
        const next = self.pool.counters[phase].value.fetchAdd(1, .monotonic);
        return if (next < total) next else null;
    }

    /// Waits until every member has come here; what was written before is visible after.
    pub fn barrier(self: *Member) void {
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

/// Spins, and gives the core away now and then: the thread waited for may need it.
fn spinOnce(spins: *u32) void {
    std.atomic.spinLoopHint();
    spins.* +%= 1;
    if (spins.* % 16384 == 0) std.Thread.yield() catch {};
}

const Body = *const fn (context: *anyopaque, member: *Member) void;

pub const Pool = struct {
    threads: []std.Thread,
    num_threads: u32,
    spin_ns: u64,
    body: Body,
    context: *anyopaque,
    single: [max_phases]u32,
    generation: Counter,
    remaining: Counter,
    parked: Counter,
    arrived: Counter,
    released: Counter,
    counters: [max_phases]Counter,
    stopping: bool,

    pub fn create(gpa: std.mem.Allocator, num_threads: u32, spin_us: u32, pin: ?[]const u32) !*Pool {
        std.debug.assert(num_threads >= 1);
        const self = try gpa.create(Pool);
        errdefer gpa.destroy(self);
        self.* = .{
            .threads = try gpa.alloc(std.Thread, num_threads - 1),
            .num_threads = num_threads,
            .spin_ns = @as(u64, spin_us) * 1000,
            .body = undefined,
            .context = undefined,
            .single = undefined,
            .generation = .{ .value = .init(0) },
            .remaining = .{ .value = .init(0) },
            .parked = .{ .value = .init(0) },
            .arrived = .{ .value = .init(0) },
            .released = .{ .value = .init(0) },
            .counters = undefined,
            .stopping = false,
        };
        errdefer gpa.free(self.threads);
        if (pin) |order| pinSelf(order[0]);
        for (self.threads, 1..) |*thread, index| {
            const cpu: ?u32 = if (pin) |order| order[index % order.len] else null;
            thread.* = std.Thread.spawn(.{ .stack_size = 1 << 20 }, worker, .{ self, @as(u32, @intCast(index)), cpu }) catch |err| {
                self.stop(index - 1);
                return err;
            };
        }
        return self;
    }

    pub fn destroy(self: *Pool, gpa: std.mem.Allocator) void {
        self.stop(self.threads.len);
        gpa.free(self.threads);
        gpa.destroy(self);
    }

    fn stop(self: *Pool, started: usize) void {
        self.stopping = true;
        self.announce();
        for (self.threads[0..started]) |thread| thread.join();
    }

    /// Runs body(context, member) on every thread, the caller included, and returns when all are done.
    pub fn run(self: *Pool, context: anytype, comptime body: fn (@TypeOf(context), *Member) void) void {
        const Context = @TypeOf(context);
        const Erased = struct {
            fn call(erased: *anyopaque, member: *Member) void {
                const typed: Context = @ptrCast(@alignCast(erased));
                body(typed, member);
            }
        };
        var member: Member = .{ .pool = self, .index = 0, .count = self.num_threads, .sense = self.released.value.raw };
        if (self.num_threads == 1) {
            @memset(&self.single, 0);
            return body(context, &member);
        }
        for (&self.counters) |*counter| counter.value.store(0, .monotonic);
        self.body = Erased.call;
        self.context = @ptrCast(@constCast(context));
        self.remaining.value.store(self.num_threads - 1, .monotonic);
        self.announce();
        body(context, &member);
        var spins: u32 = 0;
        while (self.remaining.value.load(.acquire) != 0) spinOnce(&spins);
    }

    fn announce(self: *Pool) void {
        _ = self.generation.value.fetchAdd(1, .seq_cst);
        if (self.parked.value.load(.seq_cst) > 0) std.Thread.Futex.wake(&self.generation.value, std.math.maxInt(u32));
    }

    fn worker(self: *Pool, index: u32, cpu: ?u32) void {
        if (cpu) |number| pinSelf(number);
        var seen: u32 = 0;
        while (true) {
            self.waitChange(seen);
            seen +%= 1;
            if (self.stopping) return;
            var member: Member = .{ .pool = self, .index = index, .count = self.num_threads, .sense = self.released.value.raw };
            self.body(self.context, &member);
            _ = self.remaining.value.fetchSub(1, .release);
        }
    }

    fn waitChange(self: *Pool, seen: u32) void {
        var spins: u32 = 0;
        var timer: ?std.time.Timer = null;
        while (self.generation.value.load(.acquire) == seen) {
            std.atomic.spinLoopHint();
            spins +%= 1;
            if (spins % 1024 != 0) continue;
            if (timer) |*running| {
                if (running.read() >= self.spin_ns) self.park(seen);
            } else {
                timer = std.time.Timer.start() catch null;
                if (timer == null) self.park(seen);
            }
        }
    }

    fn park(self: *Pool, seen: u32) void {
        _ = self.parked.value.fetchAdd(1, .seq_cst);
        std.Thread.Futex.wait(&self.generation.value, seen);
        _ = self.parked.value.fetchSub(1, .seq_cst);
    }
};

fn pinSelf(cpu: u32) void {
    if (builtin.os.tag != .linux) return;
    var set = std.mem.zeroes(std.os.linux.cpu_set_t);
    const word = @bitSizeOf(usize);
    set[cpu / word] |= @as(usize, 1) << @intCast(cpu % word);
    std.os.linux.sched_setaffinity(0, &set) catch {}; // a forbidden pin costs speed only
}

const Sum = struct {
    total: std.atomic.Value(u64) = .init(0),
    order_broken: std.atomic.Value(bool) = .init(false),
    marks: [64]u32 = [_]u32{0} ** 64,

    fn body(self: *Sum, member: *Member) void {
        while (member.claim(0, 1000)) |i| _ = self.total.fetchAdd(i, .monotonic);
        self.marks[member.index] = 1;
        member.barrier();
        for (self.marks[0..member.count]) |mark| if (mark != 1) self.order_broken.store(true, .monotonic);
        member.barrier();
        while (member.claim(1, 10)) |i| _ = self.total.fetchAdd(i, .monotonic);
    }
};

test "every chunk is claimed once, barriers hold, over many regions and parked workers" {
    for ([_]u32{ 1, 2, 3, 5 }) |threads| {
        const pool = try Pool.create(std.testing.allocator, threads, 50, null);
        defer pool.destroy(std.testing.allocator);
        for (0..200) |round| {
            var sum: Sum = .{};
            pool.run(&sum, Sum.body);
            try std.testing.expectEqual(@as(u64, 499_500 + 45), sum.total.raw);
            try std.testing.expect(!sum.order_broken.raw);
            if (round % 50 == 0) std.Thread.sleep(2 * std.time.ns_per_ms);
        }
    }
}
