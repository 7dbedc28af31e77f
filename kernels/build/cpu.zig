//! libkt_cpu: one static library per ISA level, each compiled with exactly the features that kernels/cpu/cpuid.zig asks
//! CPUID for, linked into one shared library with the dispatching Zig code (compiled for the weakest level).
const std = @import("std");
const x86 = std.Target.x86;
const aarch64 = std.Target.aarch64;

const Isa = struct {
    name: []const u8,
    model: *const std.Target.Cpu.Model,
    add: std.Target.Cpu.Feature.Set = .empty,
};

const x86_isas = [_]Isa{
    .{ .name = "scalar", .model = &x86.cpu.x86_64_v2 },
    .{ .name = "avx2", .model = &x86.cpu.x86_64_v3 },
    .{ .name = "avx512", .model = &x86.cpu.x86_64_v4, .add = x86.featureSet(&.{.avx512vnni}) },
    .{ .name = "avx512bf16", .model = &x86.cpu.x86_64_v4, .add = x86.featureSet(&.{ .avx512vnni, .avx512bf16 }) },
    .{
        .name = "amx",
        .model = &x86.cpu.x86_64_v4,
        .add = x86.featureSet(&.{ .avx512vnni, .avx512bf16, .avx512vbmi, .gfni, .amx_tile, .amx_int8, .amx_bf16 }),
    },
};

/// Tiles in C, for tests on machines that have AVX-512 and none.
pub var emulate_amx = false;
const emulated_amx: Isa = .{
    .name = "amx",
    .model = &x86.cpu.x86_64_v4,
    .add = x86.featureSet(&.{ .avx512vnni, .avx512bf16, .avx512vbmi, .gfni }),
};

const arm_isas = [_]Isa{
    .{ .name = "scalar", .model = &aarch64.cpu.generic },
    .{ .name = "neon", .model = &aarch64.cpu.generic },
    .{ .name = "dotprod", .model = &aarch64.cpu.generic, .add = aarch64.featureSet(&.{ .dotprod, .fullfp16 }) },
    .{ .name = "i8mm", .model = &aarch64.cpu.generic, .add = aarch64.featureSet(&.{ .dotprod, .fullfp16, .i8mm, .bf16 }) },
};

fn isasOf(arch: std.Target.Cpu.Arch) []const Isa {
    return switch (arch) {
        .x86_64 => &x86_isas,
        .aarch64 => &arm_isas,
        else => std.debug.panic("no CPU kernels for {s}: use x86_64 or aarch64", .{@tagName(arch)}),
    };
}

/// glibc for libraries; musl makes programs that need nothing of the machine they run on.
const Libc = enum { glibc, musl };

fn targetOf(b: *std.Build, os: std.Target.Os.Tag, arch: std.Target.Cpu.Arch, libc: Libc, isa: Isa) std.Build.ResolvedTarget {
    // clang's headers for macOS take the features of its oldest processor for granted
    const model = if (os == .macos and arch == .aarch64) &aarch64.cpu.apple_m1 else isa.model;
    var query: std.Target.Query = .{
        .cpu_arch = arch,
        .os_tag = os,
        .cpu_model = .{ .explicit = model },
        .cpu_features_add = isa.add,
    };
    if (libc == .musl) {
        query.abi = .musl;
    } else if (os == .linux) {
        query.abi = .gnu;
        query.glibc_version = .{ .major = 2, .minor = 28, .patch = 0 };
    } else if (os == .windows) {
        query.abi = .gnu;
    }
    return b.resolveTargetQuery(query);
}

const c_flags = [_][]const u8{
    "-std=c11",                "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-fno-math-errno", "-ffp-contract=fast",
    // denormals and signed zeros matter to the references; reassociation of reductions is done by hand
    "-fno-sanitize=undefined",
};

pub fn addLibrary(b: *std.Build, os: std.Target.Os.Tag, arch: std.Target.Cpu.Arch, optimize: std.builtin.OptimizeMode) *std.Build.Step.Compile {
    const isas = isasOf(arch);
    const module = cpuModule(b, os, arch, .glibc, optimize);
    const lib = b.addLibrary(.{ .name = "kt_cpu", .linkage = .dynamic, .root_module = module });
    lib.link_gc_sections = true;
    for (isas) |isa| module.linkLibrary(isaLibrary(b, os, arch, .glibc, isa, optimize));
    return lib;
}

fn cpuModule(b: *std.Build, os: std.Target.Os.Tag, arch: std.Target.Cpu.Arch, libc: Libc, optimize: std.builtin.OptimizeMode) *std.Build.Module {
    const module = b.createModule(.{
        .root_source_file = b.path("kernels/cpu/root.zig"),
        .target = targetOf(b, os, arch, libc, isasOf(arch)[0]),
        .optimize = optimize,
        .link_libc = true,
        .pic = true,
        .strip = optimize != .Debug,
    });
    module.addIncludePath(b.path("kernels/include"));
    module.addIncludePath(b.path("kernels/cpu/isa"));
    module.addCSourceFile(.{ .file = b.path("kernels/cpu/isa/codebook.c"), .flags = &c_flags });
    addCore(b, module);
    const options = b.addOptions();
    options.addOption(bool, "emulate_amx", emulate_amx);
    module.addOptions("build_options", options);
    return module;
}

fn addCore(b: *std.Build, module: *std.Build.Module) void {
    const core = b.createModule(.{ .root_source_file = b.path("kernels/core/core.zig"), .link_libc = true });
    core.addIncludePath(b.path("kernels/include"));
    core.addImport("abi_table", abiTable(b));
    module.addImport("core", core);
}

/// For another library of this machine's platform: its Zig root with the core that all libraries share.
pub fn coreModule(b: *std.Build, root: []const u8, optimize: std.builtin.OptimizeMode) *std.Build.Module {
    const host = b.graph.host.result;
    const module = b.createModule(.{
        .root_source_file = b.path(root),
        .target = targetOf(b, host.os.tag, host.cpu.arch, .glibc, isasOf(host.cpu.arch)[0]),
        .optimize = optimize,
        .link_libc = true,
        .pic = true,
        .strip = optimize != .Debug,
    });
    addCore(b, module);
    return module;
}

fn abiTable(b: *std.Build) *std.Build.Module {
    const table = b.createModule(.{ .root_source_file = b.path("kernels/abi/table.zig") });
    table.addIncludePath(b.path("kernels/include"));
    return table;
}

fn isaLibrary(b: *std.Build, os: std.Target.Os.Tag, arch: std.Target.Cpu.Arch, libc: Libc, wanted: Isa, optimize: std.builtin.OptimizeMode) *std.Build.Step.Compile {
    const emulated = emulate_amx and std.mem.eql(u8, wanted.name, "amx");
    const isa = if (emulated) emulated_amx else wanted;
    const module = b.createModule(.{
        .target = targetOf(b, os, arch, libc, isa),
        .optimize = optimize,
        .link_libc = true,
        .pic = true,
        .strip = optimize != .Debug,
    });
    module.addIncludePath(b.path("kernels/include"));
    if (emulated) module.addCMacro("KT_AMX_EMULATED", "1");
    module.addCSourceFile(.{ .file = b.path(b.fmt("kernels/cpu/isa/{s}.c", .{isa.name})), .flags = &c_flags });
    return b.addLibrary(.{ .name = b.fmt("kt_isa_{s}", .{isa.name}), .linkage = .static, .root_module = module });
}

/// The generator describes functions it never calls; in Debug its debug information would reference them at link time.
pub fn abiText(b: *std.Build) std.Build.LazyPath {
    const module = b.createModule(.{
        .root_source_file = b.path("kernels/abi/gen.zig"),
        .target = b.graph.host,
        .optimize = .ReleaseSmall,
        .strip = true,
        .link_libc = true,
    });
    module.addImport("abi_table", abiTable(b));
    const exe = b.addExecutable(.{ .name = "kt-abi", .root_module = module });
    const run = b.addRunArtifact(exe);
    return run.captureStdOut();
}

pub fn addAbiGenerator(b: *std.Build, text: std.Build.LazyPath) *std.Build.Step {
    const update = b.addUpdateSourceFiles();
    update.addCopyFileToSource(text, "src/native/abi.generated.ts");
    return &update.step;
}

pub fn addTests(b: *std.Build, optimize: std.builtin.OptimizeMode) *std.Build.Step {
    const host = b.graph.host.result;
    const module = cpuModule(b, host.os.tag, host.cpu.arch, .glibc, if (optimize == .ReleaseFast) .ReleaseSafe else optimize);
    for (isasOf(host.cpu.arch)) |isa| module.linkLibrary(isaLibrary(b, host.os.tag, host.cpu.arch, .glibc, isa, optimize));
    const tests = b.addTest(.{ .name = "kt-cpu-test", .root_module = module });
    return &b.addRunArtifact(tests).step;
}

/// A level, and the weakest of qemu's processors that has it: what it lacks is an illegal instruction there.
const ArmRun = struct { level: []const u8, processor: []const u8, forced: bool = false };
const arm_runs = [_]ArmRun{
    .{ .level = "scalar", .processor = "cortex-a53", .forced = true },
    .{ .level = "neon", .processor = "cortex-a53" },
    .{ .level = "dotprod", .processor = "neoverse-n1" },
    .{ .level = "i8mm", .processor = "max" },
};

/// Op tests through the C ABI for 64-bit ARM, run by qemu's user mode; without it the step says so and does nothing.
pub fn addArmTests(b: *std.Build) *std.Build.Step {
    const optimize: std.builtin.OptimizeMode = .ReleaseFast;
    const module = b.createModule(.{
        .root_source_file = b.path("kernels/test/root.zig"),
        .target = targetOf(b, .linux, .aarch64, .musl, arm_isas[0]),
        .optimize = .ReleaseSafe,
        .link_libc = true,
    });
    module.addIncludePath(b.path("kernels/include"));
    const library = b.addLibrary(.{
        .name = "kt_cpu",
        .linkage = .static,
        .root_module = cpuModule(b, .linux, .aarch64, .musl, optimize),
    });
    module.linkLibrary(library);
    for (arm_isas) |isa| module.linkLibrary(isaLibrary(b, .linux, .aarch64, .musl, isa, optimize));
    const tests = b.addTest(.{ .name = "kt-arm-test", .root_module = module });
    const all = b.allocator.create(std.Build.Step) catch @panic("OOM");
    all.* = .init(.{ .id = .custom, .name = "op tests for 64-bit ARM", .owner = b });
    if (b.findProgram(&.{"qemu-aarch64"}, &.{})) |_| {
        b.enable_qemu = true;
        for (arm_runs) |wanted| {
            const run = b.addRunArtifact(tests);
            run.setName(b.fmt("run {s} on {s}", .{ wanted.level, wanted.processor }));
            run.setEnvironmentVariable("QEMU_CPU", wanted.processor);
            run.setEnvironmentVariable("KT_EXPECT_ISA", wanted.level);
            run.setEnvironmentVariable("KT_CPU_ISA", if (wanted.forced) wanted.level else "");
            all.dependOn(&run.step);
        }
    } else |_| {
        all.dependOn(&b.addSystemCommand(&.{ "echo", "skipped: qemu-aarch64 was not found (Debian: qemu-user)" }).step);
    }
    return all;
}
