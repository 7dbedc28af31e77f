//! Which CPUs the process may use, how they lie in cores and NUMA nodes, and which thread of the pool gets which.
//! Read from Linux's sysfs (Documentation/ABI/stable/sysfs-devices-node, sysfs-devices-system-cpu); elsewhere one node.
const std = @import("std");
const builtin = @import("builtin");

/// Nodes that a pool tells apart. Machines with more have theirs folded together.
pub const max_nodes = 8;

pub const Affinity = if (builtin.os.tag == .linux) std.os.linux.cpu_set_t else [1]usize;
const word_bits = @bitSizeOf(usize);

pub fn threadAffinity() ?Affinity {
    if (builtin.os.tag != .linux) return null;
    return std.posix.sched_getaffinity(0) catch null;
}

/// A forbidden mask costs speed only.
pub fn setThreadAffinity(mask: Affinity) void {
    if (builtin.os.tag != .linux) return;
    std.os.linux.sched_setaffinity(0, &mask) catch {};
}

pub fn holds(mask: Affinity, cpu: usize) bool {
    const words: []const usize = &mask;
    return cpu < words.len * word_bits and (words[cpu / word_bits] >> @intCast(cpu % word_bits)) & 1 == 1;
}

pub fn add(mask: *Affinity, cpu: usize) void {
    mask[cpu / word_bits] |= @as(usize, 1) << @intCast(cpu % word_bits);
}

pub const Cpu = struct {
    number: u32,
    /// Index into Topology.nodes.
    node: u32,
    /// A hardware thread of a core of which a lower-numbered one may be used too.
    sibling: bool,
    /// Of the slower kind of a machine with two kinds of cores.
    efficient: bool,

    /// The order in which threads take CPUs: every core once before any twice, fast cores before slow ones.
    fn before(_: void, a: Cpu, b: Cpu) bool {
        if (a.sibling != b.sibling) return b.sibling;
        if (a.efficient != b.efficient) return b.efficient;
        return a.number < b.number;
    }
};

/// A thread of the pool: the node it belongs to, and the CPUs it may run on where that is limited.
pub const Place = struct { node: u32 = 0, affinity: ?Affinity = null };

pub const Topology = struct {
    /// In the order in which threads take them.
    cpus: []Cpu,
    /// The system's numbers of the nodes that have usable CPUs.
    nodes: []u32,

    pub fn deinit(self: Topology, gpa: std.mem.Allocator) void {
        gpa.free(self.cpus);
        gpa.free(self.nodes);
    }

    /// Cores of which at least one hardware thread may be used.
    pub fn physical(self: Topology) u32 {
        var count: u32 = 0;
        for (self.cpus) |cpu| count += @intFromBool(!cpu.sibling);
        return count;
    }

    /// Nodes of a pool: as many as the machine has when `wanted` is 0, never more than threads.
    pub fn nodeCount(self: Topology, wanted: u32, threads: u32) u32 {
        const count: u32 = if (wanted == 0) @intCast(self.nodes.len) else wanted;
        return std.math.clamp(count, 1, @min(threads, max_nodes));
    }

    /// One place a thread, the first being the caller's. With as many nodes as the machine has, threads keep to the CPUs of
    /// their nodes; another number only divides the work. Pinned threads have one CPU each, where there are enough.
    pub fn places(self: Topology, gpa: std.mem.Allocator, threads: u32, nodes: u32, pin: bool) ![]Place {
        const result = try gpa.alloc(Place, threads);
        const true_nodes = nodes > 1 and nodes == self.nodes.len;
        var taken = [_]u32{0} ** max_nodes;
        for (result, 0..) |*place, index| {
            const node: u32 = if (true_nodes) self.emptiest(nodes, &taken) else @intCast(index % nodes);
            place.* = .{ .node = node };
            const own: ?u32 = if (true_nodes) node else null;
            const position = if (true_nodes) taken[node] else index;
            taken[node] += 1;
            if (pin) {
                if (self.nth(own, position)) |cpu| {
                    place.affinity = std.mem.zeroes(Affinity);
                    add(&place.affinity.?, cpu.number);
                    continue;
                }
            }
            if (!true_nodes) continue;
            place.affinity = std.mem.zeroes(Affinity);
            for (self.cpus) |cpu| if (cpu.node == node) add(&place.affinity.?, cpu.number);
        }
        return result;
    }

    /// Every node gets a thread, then the node with the most cores left.
    fn emptiest(self: Topology, nodes: u32, taken: *const [max_nodes]u32) u32 {
        var best: u32 = 0;
        var most: i64 = std.math.minInt(i64);
        for (0..nodes) |node| {
            if (taken[node] == 0) return @intCast(node);
            var left: i64 = -@as(i64, taken[node]);
            for (self.cpus) |cpu| left += @intFromBool(cpu.node == node and !cpu.sibling);
            if (left > most) {
                most = left;
                best = @intCast(node);
            }
        }
        return best;
    }

    fn nth(self: Topology, node: ?u32, position: usize) ?Cpu {
        var left = position;
        for (self.cpus) |cpu| {
            if (node != null and cpu.node != node.?) continue;
            if (left == 0) return cpu;
            left -= 1;
        }
        return null;
    }
};

/// `devices` is /sys/devices, or a folder that looks like it. The caller deinits the result.
pub fn read(gpa: std.mem.Allocator, devices: []const u8, allowed: Affinity) !Topology {
    var cpus: std.ArrayList(Cpu) = .empty;
    defer cpus.deinit(gpa);
    const words: []const usize = &allowed;
    var fastest: u32 = 0;
    for (0..words.len * word_bits) |number| {
        if (holds(allowed, number)) fastest = @max(fastest, capacity(devices, number) orelse 0);
    }
    const slow_cores = readList(devices, "cpu_atom/cpus", .{}); // Intel's hybrids
    for (0..words.len * word_bits) |number| {
        if (!holds(allowed, number)) continue;
        const siblings = readList(devices, "system/cpu/cpu{d}/topology/thread_siblings_list", .{number});
        const slow = if (slow_cores) |list| holds(list, number) else if (capacity(devices, number)) |own| own * 5 < fastest * 4 else false;
        try cpus.append(gpa, .{
            .number = @intCast(number),
            .node = 0,
            .sibling = if (siblings) |list| lowest(list, allowed) != number else false,
            .efficient = slow,
        });
    }
    std.mem.sort(Cpu, cpus.items, {}, Cpu.before);
    var nodes: std.ArrayList(u32) = .empty;
    defer nodes.deinit(gpa);
    const online = readList(devices, "system/node/online", .{});
    for (0..words.len * word_bits) |node| {
        if (online == null or !holds(online.?, node)) continue;
        const list = readList(devices, "system/node/node{d}/cpulist", .{node}) orelse continue;
        var used = false;
        for (cpus.items) |*cpu| if (holds(list, cpu.number)) {
            cpu.node = @intCast(@min(nodes.items.len, max_nodes - 1));
            used = true;
        };
        if (used and nodes.items.len < max_nodes) try nodes.append(gpa, @intCast(node));
    }
    if (nodes.items.len == 0) try nodes.append(gpa, 0);
    const owned = try cpus.toOwnedSlice(gpa);
    errdefer gpa.free(owned);
    return .{ .cpus = owned, .nodes = try nodes.toOwnedSlice(gpa) };
}

/// Where the system says nothing: `count` CPUs of one node.
pub fn flat(gpa: std.mem.Allocator, count: u32) !Topology {
    const cpus = try gpa.alloc(Cpu, count);
    errdefer gpa.free(cpus);
    for (cpus, 0..) |*cpu, i| cpu.* = .{ .number = @intCast(i), .node = 0, .sibling = false, .efficient = false };
    const nodes = try gpa.dupe(u32, &.{0});
    return .{ .cpus = cpus, .nodes = nodes };
}

fn lowest(list: Affinity, allowed: Affinity) usize {
    for (list, allowed, 0..) |a, b, word| {
        if (a & b != 0) return word * word_bits + @ctz(a & b);
    }
    return std.math.maxInt(usize);
}

/// How fast a core is, the fastest of the machine being 1024.
fn capacity(devices: []const u8, number: usize) ?u32 {
    var buffer: [32]u8 = undefined;
    const text = readSmall(devices, "system/cpu/cpu{d}/cpu_capacity", .{number}, &buffer) orelse return null;
    return std.fmt.parseInt(u32, text, 10) catch null;
}

fn readSmall(devices: []const u8, comptime format: []const u8, args: anytype, buffer: []u8) ?[]const u8 {
    var name: [512]u8 = undefined;
    const path = std.fmt.bufPrint(&name, "{s}/" ++ format, .{devices} ++ args) catch return null;
    const file = std.fs.cwd().openFile(path, .{}) catch return null;
    defer file.close();
    const len = file.readAll(buffer) catch return null;
    return std.mem.trim(u8, buffer[0..len], " \n\t");
}

fn readList(devices: []const u8, comptime format: []const u8, args: anytype) ?Affinity {
    var buffer: [4096]u8 = undefined;
    return parseList(readSmall(devices, format, args, &buffer) orelse return null);
}

/// "0-3,8,10-11"; numbers beyond the mask are left out.
fn parseList(text: []const u8) ?Affinity {
    if (builtin.os.tag != .linux) return null;
    var mask = std.mem.zeroes(Affinity);
    var ranges = std.mem.tokenizeScalar(u8, text, ',');
    while (ranges.next()) |range| {
        const dash = std.mem.indexOfScalar(u8, range, '-');
        const first = std.fmt.parseInt(usize, range[0 .. dash orelse range.len], 10) catch return null;
        const last = if (dash) |at| std.fmt.parseInt(usize, range[at + 1 ..], 10) catch return null else first;
        var cpu = first;
        while (cpu <= last and cpu < mask.len * word_bits) : (cpu += 1) add(&mask, cpu);
    }
    return mask;
}

const huge_page = 2 << 20;

/// Has the system put `memory` on a node where it is first written, in whole huge pages, each to whom most of it belongs. False
/// where the system refuses, and the first writer's node then decides. It is a preference, so a full node is no failure.
/// See mbind(2).
pub fn preferNode(memory: []u8, node: u32) bool {
    if (builtin.os.tag != .linux or node >= 64) return false;
    const first = std.mem.alignBackward(usize, @intFromPtr(memory.ptr) + huge_page / 2, huge_page);
    const end = std.mem.alignBackward(usize, @intFromPtr(memory.ptr) + memory.len + huge_page / 2, huge_page);
    if (end <= first) return true;
    const preferred = 1; // MPOL_PREFERRED
    const mask = @as(u64, 1) << @intCast(node);
    return std.os.linux.E.init(std.os.linux.syscall6(.mbind, first, end - first, preferred, @intFromPtr(&mask), 64 + 1, 0)) == .SUCCESS;
}

const Fixture = struct {
    folder: std.testing.TmpDir,
    path: []u8,

    fn create(files: []const [2][]const u8) !Fixture {
        var folder = std.testing.tmpDir(.{});
        errdefer folder.cleanup();
        for (files) |file| {
            try folder.dir.makePath(std.fs.path.dirname(file[0]).?);
            try folder.dir.writeFile(.{ .sub_path = file[0], .data = file[1] });
        }
        return .{ .folder = folder, .path = try folder.dir.realpathAlloc(std.testing.allocator, ".") };
    }

    fn deinit(self: *Fixture) void {
        std.testing.allocator.free(self.path);
        self.folder.cleanup();
    }
};

fn maskOf(numbers: []const usize) Affinity {
    var mask = std.mem.zeroes(Affinity);
    for (numbers) |number| add(&mask, number);
    return mask;
}

fn expectOrder(found: Topology, numbers: []const u32) !void {
    try std.testing.expectEqual(numbers.len, found.cpus.len);
    for (found.cpus, numbers) |cpu, number| try std.testing.expectEqual(number, cpu.number);
}

const two_sockets = [_][2][]const u8{
    .{ "system/node/online", "0-2\n" },
    .{ "system/node/node0/cpulist", "0-1,4-5\n" },
    .{ "system/node/node1/cpulist", "2-3,6-7\n" },
    .{ "system/node/node2/cpulist", "\n" }, // memory alone
    .{ "system/cpu/cpu0/topology/thread_siblings_list", "0,4\n" },
    .{ "system/cpu/cpu1/topology/thread_siblings_list", "1,5\n" },
    .{ "system/cpu/cpu2/topology/thread_siblings_list", "2,6\n" },
    .{ "system/cpu/cpu3/topology/thread_siblings_list", "3,7\n" },
    .{ "system/cpu/cpu4/topology/thread_siblings_list", "0,4\n" },
    .{ "system/cpu/cpu5/topology/thread_siblings_list", "1,5\n" },
    .{ "system/cpu/cpu6/topology/thread_siblings_list", "2,6\n" },
    .{ "system/cpu/cpu7/topology/thread_siblings_list", "3,7\n" },
};

test "two sockets: threads alternate between nodes, every core once before any twice" {
    if (builtin.os.tag != .linux) return error.SkipZigTest;
    const gpa = std.testing.allocator;
    var fixture = try Fixture.create(&two_sockets);
    defer fixture.deinit();
    const found = try read(gpa, fixture.path, maskOf(&.{ 0, 1, 2, 3, 4, 5, 6, 7 }));
    defer found.deinit(gpa);
    try expectOrder(found, &.{ 0, 1, 2, 3, 4, 5, 6, 7 });
    try std.testing.expectEqualSlices(u32, &.{ 0, 1 }, found.nodes);
    try std.testing.expectEqual(@as(u32, 4), found.physical());
    try std.testing.expectEqual(@as(u32, 2), found.nodeCount(0, 4));
    try std.testing.expectEqual(@as(u32, 1), found.nodeCount(0, 1));
    try std.testing.expectEqual(@as(u32, 4), found.nodeCount(4, 16));

    const pinned = try found.places(gpa, 4, 2, true);
    defer gpa.free(pinned);
    for (pinned, [_]u32{ 0, 1, 0, 1 }, [_]usize{ 0, 2, 1, 3 }) |place, node, cpu| {
        try std.testing.expectEqual(node, place.node);
        try std.testing.expectEqual(maskOf(&.{cpu}), place.affinity.?);
    }
    const free = try found.places(gpa, 2, 2, false);
    defer gpa.free(free);
    try std.testing.expectEqual(maskOf(&.{ 0, 1, 4, 5 }), free[0].affinity.?);
    try std.testing.expectEqual(maskOf(&.{ 2, 3, 6, 7 }), free[1].affinity.?);
    const simulated = try found.places(gpa, 4, 4, false);
    defer gpa.free(simulated);
    for (simulated, 0..) |place, node| {
        try std.testing.expectEqual(@as(u32, @intCast(node)), place.node);
        try std.testing.expectEqual(@as(?Affinity, null), place.affinity);
    }
}

test "a container's cpuset: the second thread of a core is the first that may be used, an empty node is none" {
    if (builtin.os.tag != .linux) return error.SkipZigTest;
    const gpa = std.testing.allocator;
    var fixture = try Fixture.create(&two_sockets);
    defer fixture.deinit();
    const one_node = try read(gpa, fixture.path, maskOf(&.{ 2, 6, 7 }));
    defer one_node.deinit(gpa);
    try expectOrder(one_node, &.{ 2, 7, 6 });
    try std.testing.expectEqualSlices(u32, &.{1}, one_node.nodes);
    try std.testing.expectEqual(@as(u32, 2), one_node.physical());
    const uneven = try read(gpa, fixture.path, maskOf(&.{ 0, 1, 2 }));
    defer uneven.deinit(gpa);
    const places = try uneven.places(gpa, 3, 2, true);
    defer gpa.free(places);
    for (places, [_]u32{ 0, 1, 0 }) |place, node| try std.testing.expectEqual(node, place.node);
}

test "fast cores come before slow ones, and those before hyper-threads" {
    if (builtin.os.tag != .linux) return error.SkipZigTest;
    const gpa = std.testing.allocator;
    var intel = try Fixture.create(&.{
        .{ "system/cpu/cpu0/topology/thread_siblings_list", "0-1\n" },
        .{ "system/cpu/cpu1/topology/thread_siblings_list", "0-1\n" },
        .{ "cpu_atom/cpus", "2-3\n" },
    });
    defer intel.deinit();
    const hybrid = try read(gpa, intel.path, maskOf(&.{ 0, 1, 2, 3 }));
    defer hybrid.deinit(gpa);
    try expectOrder(hybrid, &.{ 0, 2, 3, 1 });
    var arm = try Fixture.create(&.{
        .{ "system/cpu/cpu0/cpu_capacity", "378\n" },
        .{ "system/cpu/cpu1/cpu_capacity", "1024\n" },
        .{ "system/cpu/cpu2/cpu_capacity", "980\n" },
    });
    defer arm.deinit();
    const little = try read(gpa, arm.path, maskOf(&.{ 0, 1, 2 }));
    defer little.deinit(gpa);
    try expectOrder(little, &.{ 1, 2, 0 });
    try std.testing.expectEqualSlices(u32, &.{0}, little.nodes);
}

test "lists of numbers" {
    if (builtin.os.tag != .linux) return error.SkipZigTest;
    try std.testing.expectEqual(maskOf(&.{ 0, 1, 2, 8, 10, 11 }), parseList("0-2,8,10-11").?);
    try std.testing.expectEqual(maskOf(&.{}), parseList("").?);
    try std.testing.expectEqual(@as(?Affinity, null), parseList("0-x"));
}

test "memory can be given to the node it is on" {
    if (builtin.os.tag != .linux) return error.SkipZigTest;
    const memory = try std.heap.page_allocator.alignedAlloc(u8, .fromByteUnits(huge_page), 2 * huge_page);
    defer std.heap.page_allocator.free(memory);
    const done = preferNode(memory, 0);
    @memset(memory, 1);
    // a sandbox may forbid the call; a node that does not exist is refused everywhere
    if (done) try std.testing.expect(!preferNode(memory, 63));
}
