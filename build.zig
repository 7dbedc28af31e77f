//! Wires the kernel libraries; kernels/build/*.zig does the work.
//!   zig build            libkt_cpu for this machine's platform into zig-out/lib
//!   zig build -Dcuda     libkt_cuda too, of kernels/gpu/*.cu, with nvcc 13 and g++; `zig build cuda` makes it alone
//!   zig build hip        libkt_hip of the same sources, with hipcc
//!   zig build sycl       libkt_sycl of kernels/sycl/*.cpp, with a SYCL 2020 compiler
//!   zig build abi        regenerates src/native/abi.generated.ts from kernels/include/kt.h
//!   zig build abi-text   writes the same below the prefix, so that tests can compare the two
//!   zig build test       Zig unit tests (pool, cpuid, status, slab)
//!   zig build test-aarch64   op tests of every 64-bit ARM level through the C ABI, under qemu-aarch64
const std = @import("std");
const cpu = @import("kernels/build/cpu.zig");
const gpu = @import("kernels/build/gpu.zig");
const sycl = @import("kernels/build/sycl.zig");

pub fn build(b: *std.Build) void {
    const target = b.standardTargetOptions(.{});
    const optimize = b.option(std.builtin.OptimizeMode, "optimize", "default: ReleaseFast") orelse .ReleaseFast;

    cpu.emulate_amx = b.option(bool, "emulate-amx", "level amx with its tiles in C, for tests on machines without them") orelse false;

    const library = cpu.addLibrary(b, target.result.os.tag, target.result.cpu.arch, optimize);
    b.installArtifact(library);

    const archs = b.option([]const u8, "cuda-archs", "compute capabilities that libkt_cuda is compiled for; default: 80,90a") orelse "80,90a";
    const cuda = b.step("cuda", "compile libkt_cuda alone into zig-out/lib");
    const cuda_library = gpu.addLibrary(b, optimize, archs);
    cuda.dependOn(cuda_library);
    if (b.option(bool, "cuda", "compile libkt_cuda too") orelse false) b.getInstallStep().dependOn(cuda_library);

    const hip_archs = b.option([]const u8, "hip-archs", "what libkt_hip is compiled for; default: gfx90a,gfx1030") orelse "gfx90a,gfx1030";
    b.step("hip", "compile libkt_hip into zig-out/lib").dependOn(gpu.addHipLibrary(b, optimize, hip_archs));

    b.step("sycl", "compile libkt_sycl into zig-out/lib").dependOn(sycl.addLibrary(b, optimize));

    const generate = b.step("abi", "write src/native/abi.generated.ts from kt.h");
    const text = cpu.abiText(b);
    generate.dependOn(cpu.addAbiGenerator(b, text));
    const print = b.step("abi-text", "write what `zig build abi` would to PREFIX/abi.generated.ts");
    print.dependOn(&b.addInstallFile(text, "abi.generated.ts").step);

    const unit = b.step("test", "run the Zig unit tests");
    unit.dependOn(cpu.addTests(b, optimize));

    const arm = b.step("test-aarch64", "run the op tests of 64-bit ARM under qemu's user mode");
    arm.dependOn(cpu.addArmTests(b));
}
