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
        .add = x86.featureSet(&.{ .avx512vnni, .avx512bf16, .amx_tile, .amx_int8, .amx_bf16 }),
    },
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

fn targetOf(b: *std.Build, os: std.Target.Os.Tag, arch: std.Target.Cpu.Arch, isa: Isa) std.Build.ResolvedTarget {
    var query: std.Target.Query = .{
        .cpu_arch = arch,
        .os_tag = os,
        .cpu_model = .{ .explicit = isa.model },
        .cpu_features_add = isa.add,
    };
    if (os == .linux) {
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
    const module = cpuModule(b, os, arch, optimize);
    const lib = b.addLibrary(.{ .name = "kt_cpu", .linkage = .dynamic, .root_module = module });
    lib.link_gc_sections = true;
    for (isas) |isa| module.linkLibrary(isaLibrary(b, os, arch, isa, optimize));
    return lib;
}

fn cpuModule(b: *std.Build, os: std.Target.Os.Tag, arch: std.Target.Cpu.Arch, optimize: std.builtin.OptimizeMode) *std.Build.Module {
    const module = b.createModule(.{
        .root_source_file = b.path("kernels/cpu/root.zig"),
        .target = targetOf(b, os, arch, isasOf(arch)[0]),
        .optimize = optimize,
        .link_libc = true,
        .pic = true,
        .strip = optimize != .Debug,
    });
    module.addIncludePath(b.path("kernels/include"));
    module.addIncludePath(b.path("kernels/cpu/isa"));
    module.addCSourceFile(.{ .file = b.path("kernels/cpu/isa/codebook.c"), .flags = &c_flags });
    const core = b.createModule(.{ .root_source_file = b.path("kernels/core/core.zig"), .link_libc = true });
    core.addIncludePath(b.path("kernels/include"));
    core.addImport("abi_table", abiTable(b));
    module.addImport("core", core);
    return module;
}

fn abiTable(b: *std.Build) *std.Build.Module {
    const table = b.createModule(.{ .root_source_file = b.path("kernels/abi/table.zig") });
    table.addIncludePath(b.path("kernels/include"));
    return table;
}

fn isaLibrary(b: *std.Build, os: std.Target.Os.Tag, arch: std.Target.Cpu.Arch, isa: Isa, optimize: std.builtin.OptimizeMode) *std.Build.Step.Compile {
    const module = b.createModule(.{
        .target = targetOf(b, os, arch, isa),
        .optimize = optimize,
        .link_libc = true,
        .pic = true,
        .strip = optimize != .Debug,
    });
    module.addIncludePath(b.path("kernels/include"));
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
    const module = cpuModule(b, host.os.tag, host.cpu.arch, if (optimize == .ReleaseFast) .ReleaseSafe else optimize);
    for (isasOf(host.cpu.arch)) |isa| module.linkLibrary(isaLibrary(b, host.os.tag, host.cpu.arch, isa, optimize));
    const tests = b.addTest(.{ .name = "kt-cpu-test", .root_module = module });
    return &b.addRunArtifact(tests).step;
}
