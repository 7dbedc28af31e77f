//! What this CPU can run, which ISA level a context uses, and how many cores the process may use.
const std = @import("std");
const builtin = @import("builtin");
const topology = @import("topology.zig");
const c = @import("core").c;
const emulated = @import("build_options").emulate_amx;
const quota = @import("quota.zig");

pub const Level = u32; // KT_ISA_*

/// Names for KT_CPU_ISA and messages, by KT_ISA_* number.
pub const names = [c.KT_ISA_COUNT][]const u8{ "auto", "scalar", "avx2", "avx512", "avx512bf16", "amx", "neon", "dotprod", "i8mm" };

pub fn levelByName(name: []const u8) ?Level {
    for (names, 0..) |known, level| if (std.mem.eql(u8, name, known)) return @intCast(level);
    return null;
}

const Registers = struct { a: u32, b: u32, c: u32, d: u32 };

fn cpuid(leaf: u32, sub: u32) Registers {
    var a: u32 = undefined;
    var b: u32 = undefined;
    var cx: u32 = undefined;
    var d: u32 = undefined;
    asm volatile ("cpuid"
        : [a] "={eax}" (a),
          [b] "={ebx}" (b),
          [c] "={ecx}" (cx),
          [d] "={edx}" (d),
        : [leaf] "{eax}" (leaf),
          [sub] "{ecx}" (sub),
    );
    return .{ .a = a, .b = b, .c = cx, .d = d };
}

fn xgetbv0() u64 {
    var low: u32 = undefined;
    var high: u32 = undefined;
    asm volatile ("xgetbv"
        : [low] "={eax}" (low),
          [high] "={edx}" (high),
        : [index] "{ecx}" (@as(u32, 0)),
    );
    return (@as(u64, high) << 32) | low;
}

fn bit(word: u32, index: u5) bool {
    return (word >> index) & 1 == 1;
}

/// How many bytes ahead weights are asked for. An Emerald Rapids machine generated 1.1 to 2.2 times as fast then; Zen 4's own
/// prefetchers are ahead already, and read 0.8 to 0.95 as much. KT_PREFETCH_BYTES is that number otherwise.
pub fn ahead(gpa: std.mem.Allocator) i32 {
    if (std.process.getEnvVarOwned(gpa, "KT_PREFETCH_BYTES")) |text| {
        defer gpa.free(text);
        if (std.fmt.parseInt(u31, text, 10)) |forced| return forced else |_| {}
    } else |_| {}
    if (builtin.cpu.arch != .x86_64) return 0;
    const intel = 0x756e6547; // "Genu"
    return if (cpuid(0, 0).b == intel) 8192 else 0;
}

/// Bit KT_ISA_x for every level this machine runs: the features that kernels/build/cpu.zig compiles it with, and the
/// register state that the operating system saves.
pub fn isaMask() u32 {
    if (builtin.cpu.arch == .aarch64) return armMask();
    var mask: u32 = 0;
    const max_leaf = cpuid(0, 0).a;
    const l1 = cpuid(1, 0);
    // x86-64-v2: SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT
    for ([_]u5{ 0, 9, 13, 19, 20, 23 }) |index| if (!bit(l1.c, index)) return 0;
    mask |= 1 << c.KT_ISA_SCALAR;
    if (max_leaf < 7 or !bit(l1.c, 27)) return mask; // OSXSAVE
    const xcr0 = xgetbv0();
    const l7 = cpuid(7, 0);
    const l7_1 = if (l7.a >= 1) cpuid(7, 1) else Registers{ .a = 0, .b = 0, .c = 0, .d = 0 };
    const extended = cpuid(0x80000001, 0);
    // x86-64-v3: FMA, MOVBE, AVX, F16C; BMI1, AVX2, BMI2; LZCNT; YMM state
    const v3 = bit(l1.c, 12) and bit(l1.c, 22) and bit(l1.c, 28) and bit(l1.c, 29) and
        bit(l7.b, 3) and bit(l7.b, 5) and bit(l7.b, 8) and bit(extended.c, 5) and xcr0 & 0x6 == 0x6;
    if (!v3) return mask;
    mask |= 1 << c.KT_ISA_AVX2;
    // x86-64-v4: AVX512 F, DQ, CD, BW, VL; with VNNI; ZMM and mask state
    const v4 = bit(l7.b, 16) and bit(l7.b, 17) and bit(l7.b, 28) and bit(l7.b, 30) and bit(l7.b, 31) and
        bit(l7.c, 11) and xcr0 & 0xe6 == 0xe6;
    if (!v4) return mask;
    mask |= 1 << c.KT_ISA_AVX512;
    if (!bit(l7_1.a, 5)) return mask;
    mask |= 1 << c.KT_ISA_AVX512BF16;
    // VBMI and GFNI, which every CPU with tiles has
    if (!bit(l7.c, 1) or !bit(l7.c, 8)) return mask;
    // AMX-BF16, AMX-TILE, AMX-INT8, tile state, and the kernel's permission to use it; the emulation of a test build needs none
    if (emulated) {
        mask |= 1 << c.KT_ISA_AMX;
    } else if (bit(l7.d, 22) and bit(l7.d, 24) and bit(l7.d, 25) and xcr0 & 0x60000 == 0x60000 and amxPermitted())
        mask |= 1 << c.KT_ISA_AMX;
    return mask;
}

/// Linux grants tile data per process, on request (arch_prctl ARCH_REQ_XCOMP_PERM, feature 18).
fn amxPermitted() bool {
    if (builtin.os.tag != .linux or builtin.cpu.arch != .x86_64) return false;
    const request_permission = 0x1023;
    const tile_data = 18;
    return std.os.linux.syscall2(.arch_prctl, request_permission, tile_data) == 0;
}

const ArmFeatures = struct { dotprod: bool = false, half: bool = false, i8mm: bool = false, bf16: bool = false };

fn armMask() u32 {
    const has = armFeatures();
    var mask: u32 = 1 << c.KT_ISA_SCALAR | 1 << c.KT_ISA_NEON; // Advanced SIMD is part of every 64-bit ARM system
    if (!has.dotprod or !has.half) return mask;
    mask |= 1 << c.KT_ISA_DOTPROD;
    if (has.i8mm and has.bf16) mask |= 1 << c.KT_ISA_I8MM;
    return mask;
}

fn armFeatures() ArmFeatures {
    switch (builtin.os.tag) {
        .linux => {
            // HWCAP_FPHP, HWCAP_ASIMDHP and HWCAP_ASIMDDP, HWCAP2_I8MM and HWCAP2_BF16 of asm/hwcap.h
            // of libc: Zig's own is set by the start of a Zig program, which a library does not have
            const first = std.c.getauxval(std.elf.AT_HWCAP);
            const second = std.c.getauxval(std.elf.AT_HWCAP2);
            return .{
                .half = bitOf(first, 9) and bitOf(first, 10),
                .dotprod = bitOf(first, 20),
                .i8mm = bitOf(second, 13),
                .bf16 = bitOf(second, 14),
            };
        },
        .macos => return .{
            .half = appleHas("hw.optional.arm.FEAT_FP16"),
            .dotprod = appleHas("hw.optional.arm.FEAT_DotProd"),
            .i8mm = appleHas("hw.optional.arm.FEAT_I8MM"),
            .bf16 = appleHas("hw.optional.arm.FEAT_BF16"),
        },
        else => return .{},
    }
}

fn bitOf(word: usize, index: u6) bool {
    return (word >> index) & 1 == 1;
}

/// An unknown name is a feature that this system does not have or tell of.
fn appleHas(name: [:0]const u8) bool {
    var value: c_int = 0;
    var size: usize = @sizeOf(c_int);
    return std.c.sysctlbyname(name.ptr, &value, &size, null, 0) == 0 and value == 1;
}

pub fn best(mask: u32) ?Level {
    if (mask == 0) return null;
    return 31 - @clz(mask);
}

pub const Cores = struct {
    topology: topology.Topology,
    /// Cut to the cgroup's CPU quota.
    physical: u32,
    logical: u32,
    /// CPUs' time that the cgroup grants, or null without a limit; the counts are cut to it.
    quota: ?f64 = null,

    pub fn deinit(self: Cores, gpa: std.mem.Allocator) void {
        self.topology.deinit(gpa);
    }
};

var process_affinity: topology.Affinity = undefined;
var affinity_once = std.once(readProcessAffinity);

/// The main thread's mask, not the caller's: a pinned caller would find its own core only.
fn readProcessAffinity() void {
    process_affinity = std.posix.sched_getaffinity(std.os.linux.getpid()) catch std.mem.zeroes(topology.Affinity);
}

/// Cores available to this process: its affinity mask as it was before any thread was pinned, which is also what a
/// container's cpuset leaves. The caller deinits the result.
pub fn cores(gpa: std.mem.Allocator) !Cores {
    if (builtin.os.tag != .linux) {
        const count: u32 = @intCast(try std.Thread.getCpuCount());
        return .{ .topology = try topology.flat(gpa, count), .physical = count, .logical = count };
    }
    affinity_once.call();
    if (std.mem.allEqual(usize, &process_affinity, 0)) return error.NoAffinity;
    const found = try topology.read(gpa, "/sys/devices", process_affinity);
    var physical = found.physical();
    var logical: u32 = @intCast(found.cpus.len);
    const limit = quota.cpus("");
    if (limit) |cpus| {
        physical = @min(physical, quota.threads(cpus));
        logical = @min(logical, quota.threads(cpus));
    }
    return .{ .topology = found, .physical = physical, .logical = logical, .quota = limit };
}

fn readSmall(path: []const u8, buffer: []u8) ?[]const u8 {
    return quota.readSmall("", path, buffer);
}

pub fn cacheBytes(level: u8) i64 {
    var path: [96]u8 = undefined;
    var buffer: [32]u8 = undefined;
    for (0..6) |index| {
        const level_name = std.fmt.bufPrint(&path, "/sys/devices/system/cpu/cpu0/cache/index{d}/level", .{index}) catch return 0;
        const text = readSmall(level_name, &buffer) orelse return 0;
        if ((std.fmt.parseInt(u8, text, 10) catch 0) != level) continue;
        const size_name = std.fmt.bufPrint(&path, "/sys/devices/system/cpu/cpu0/cache/index{d}/size", .{index}) catch return 0;
        const size = readSmall(size_name, &buffer) orelse return 0;
        const digits = std.mem.trimRight(u8, size, "KMG");
        const scale: i64 = if (std.mem.endsWith(u8, size, "M")) 1 << 20 else if (std.mem.endsWith(u8, size, "K")) 1 << 10 else 1;
        return scale * (std.fmt.parseInt(i64, digits, 10) catch 0);
    }
    return 0;
}

test "levels have names and this machine has one" {
    try std.testing.expectEqual(@as(?Level, c.KT_ISA_AVX512), levelByName("avx512"));
    try std.testing.expectEqual(@as(?Level, null), levelByName("mmx"));
    try std.testing.expect(best(isaMask()) != null);
}

test "the process has at least one core" {
    const found = try cores(std.testing.allocator);
    defer found.deinit(std.testing.allocator);
    try std.testing.expect(found.physical >= 1 and found.topology.cpus.len >= found.physical);
}
