//! How many CPUs' time the control groups of this process grant (Linux, cgroup v1 and v2).
const std = @import("std");

/// CPUs' time a second, or null without a limit. `root` is "" but for tests: the folder that holds proc and sys.
///
/// A group's limit holds for all groups below it, so the least from the process's own group up to the mounted root counts.
/// In a container the path of /proc/self/cgroup may be one that is not mounted there; then the root's own limit is found.
pub fn cpus(root: []const u8) ?f64 {
    var buffer: [8192]u8 = undefined;
    const groups = readSmall(root, "/proc/self/cgroup", &buffer) orelse return limitUp(root, "/sys/fs/cgroup", "/", limitV2);
    var least: ?f64 = null;
    var lines = std.mem.tokenizeScalar(u8, groups, '\n');
    while (lines.next()) |line| {
        // number:controllers:path
        var parts = std.mem.splitScalar(u8, line, ':');
        const number = parts.next() orelse continue;
        const controllers = parts.next() orelse continue;
        const path = parts.rest();
        if (controllers.len == 0 and std.mem.eql(u8, number, "0")) {
            for ([_][]const u8{ "/sys/fs/cgroup", "/sys/fs/cgroup/unified" }) |mount|
                least = lower(least, limitUp(root, mount, path, limitV2));
            continue;
        }
        var names = std.mem.splitScalar(u8, controllers, ',');
        while (names.next()) |name| {
            if (!std.mem.eql(u8, name, "cpu")) continue;
            var mount_buffer: [128]u8 = undefined;
            const joined = std.fmt.bufPrint(&mount_buffer, "/sys/fs/cgroup/{s}", .{controllers}) catch continue;
            for ([_][]const u8{ joined, "/sys/fs/cgroup/cpu" }) |mount|
                least = lower(least, limitUp(root, mount, path, limitV1));
        }
    }
    return least;
}

fn lower(a: ?f64, b: ?f64) ?f64 {
    const first = a orelse return b;
    return @min(first, b orelse return first);
}

const Limit = *const fn (root: []const u8, folder: []const u8) ?f64;

/// The least limit of the folder mount/path and of those above it, down to the mount's own.
fn limitUp(root: []const u8, mount: []const u8, path: []const u8, limit: Limit) ?f64 {
    var least: ?f64 = null;
    var rest = std.mem.trimRight(u8, path, "/");
    while (true) {
        var buffer: [4096]u8 = undefined;
        if (std.fmt.bufPrint(&buffer, "{s}{s}", .{ mount, rest })) |folder| {
            least = lower(least, limit(root, folder));
        } else |_| {}
        if (rest.len == 0) return least;
        rest = rest[0 .. std.mem.lastIndexOfScalar(u8, rest, '/') orelse 0];
    }
}

/// cpu.max: "quota period" in microseconds, or "max period".
fn limitV2(root: []const u8, folder: []const u8) ?f64 {
    var buffer: [64]u8 = undefined;
    const text = readIn(root, folder, "cpu.max", &buffer) orelse return null;
    var parts = std.mem.tokenizeScalar(u8, text, ' ');
    return share(parts.next() orelse return null, parts.next() orelse return null);
}

/// cpu.cfs_quota_us, -1 without a limit, and cpu.cfs_period_us.
fn limitV1(root: []const u8, folder: []const u8) ?f64 {
    var first: [64]u8 = undefined;
    var second: [64]u8 = undefined;
    const quota = readIn(root, folder, "cpu.cfs_quota_us", &first) orelse return null;
    return share(quota, readIn(root, folder, "cpu.cfs_period_us", &second) orelse return null);
}

fn share(quota_text: []const u8, period_text: []const u8) ?f64 {
    const quota = std.fmt.parseInt(i64, quota_text, 10) catch return null; // "max" is no limit
    const period = std.fmt.parseInt(i64, period_text, 10) catch return null;
    if (quota <= 0 or period <= 0) return null;
    return @as(f64, @floatFromInt(quota)) / @as(f64, @floatFromInt(period));
}

/// Threads that the time is enough for: spinning threads beyond it would be stopped in mid-region.
pub fn threads(limit: f64) u32 {
    return @intFromFloat(std.math.clamp(@floor(limit + 0.01), 1, 1 << 20));
}

fn readIn(root: []const u8, folder: []const u8, name: []const u8, buffer: []u8) ?[]const u8 {
    var path: [4096]u8 = undefined;
    return readSmall(root, std.fmt.bufPrint(&path, "{s}/{s}", .{ folder, name }) catch return null, buffer);
}

/// A small file's text without the white space around it, or null where there is none.
pub fn readSmall(root: []const u8, name: []const u8, buffer: []u8) ?[]const u8 {
    var path: [4096]u8 = undefined;
    const whole = std.fmt.bufPrint(&path, "{s}{s}", .{ root, name }) catch return null;
    const file = std.fs.openFileAbsolute(whole, .{}) catch return null;
    defer file.close();
    const len = file.readAll(buffer) catch return null;
    return std.mem.trim(u8, buffer[0..len], " \n\t");
}

/// A folder of files as /proc and /sys have them.
const Fixture = struct {
    dir: std.testing.TmpDir,
    path: [std.fs.max_path_bytes]u8 = undefined,
    root: []const u8 = "",

    fn init(self: *Fixture, files: []const [2][]const u8) !void {
        self.* = .{ .dir = std.testing.tmpDir(.{}) };
        for (files) |file| {
            const name = file[0][1..];
            if (std.fs.path.dirname(name)) |folder| try self.dir.dir.makePath(folder);
            try self.dir.dir.writeFile(.{ .sub_path = name, .data = file[1] });
        }
        self.root = try self.dir.dir.realpath(".", &self.path);
    }
};

fn expectCpus(expected: ?f64, files: []const [2][]const u8) !void {
    var fixture: Fixture = undefined;
    try fixture.init(files);
    defer fixture.dir.cleanup();
    try std.testing.expectEqual(expected, cpus(fixture.root));
}

test "v2: the least limit from the own group upwards" {
    try expectCpus(1.5, &.{
        .{ "/proc/self/cgroup", "0::/system.slice/kt.service\n" },
        .{ "/sys/fs/cgroup/system.slice/kt.service/cpu.max", "400000 100000\n" },
        .{ "/sys/fs/cgroup/system.slice/cpu.max", "150000 100000\n" },
    });
    try expectCpus(4, &.{
        .{ "/proc/self/cgroup", "0::/system.slice/kt.service\n" },
        .{ "/sys/fs/cgroup/system.slice/kt.service/cpu.max", "400000 100000\n" },
        .{ "/sys/fs/cgroup/system.slice/cpu.max", "max 100000\n" },
    });
}

test "a container sees its limit at the mounted root, whatever its path is called outside" {
    try expectCpus(2.5, &.{
        .{ "/proc/self/cgroup", "0::/../../docker/0123456789abcdef\n" },
        .{ "/sys/fs/cgroup/cpu.max", "250000 100000\n" },
    });
    try expectCpus(3, &.{
        .{ "/proc/self/cgroup", "12:cpu,cpuacct:/docker/0123456789abcdef\n0::/\n" },
        .{ "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000\n" },
        .{ "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n" },
    });
}

test "v1: the group's own quota, and none" {
    try expectCpus(0.5, &.{
        .{ "/proc/self/cgroup", "3:cpuset:/\n1:cpu:/pods/a\n" },
        .{ "/sys/fs/cgroup/cpu/pods/a/cpu.cfs_quota_us", "50000\n" },
        .{ "/sys/fs/cgroup/cpu/pods/a/cpu.cfs_period_us", "100000\n" },
        .{ "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n" },
        .{ "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n" },
    });
    try expectCpus(null, &.{
        .{ "/proc/self/cgroup", "1:cpu:/\n" },
        .{ "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n" },
        .{ "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n" },
    });
    try expectCpus(null, &.{.{ "/proc/self/cgroup", "0::/\n" }});
}

test "threads of a limit are whole, and at least one" {
    try std.testing.expectEqual(@as(u32, 1), threads(0.5));
    try std.testing.expectEqual(@as(u32, 2), threads(2.5));
    try std.testing.expectEqual(@as(u32, 3), threads(2.999));
}
