//! libkt_cuda: kernels/gpu/*.cu compiled by nvcc with g++, linked by Zig with the static CUDA runtime. The driver is looked up
//! when the library is first asked for devices, so that it loads everywhere.
const std = @import("std");
const cpu = @import("cpu.zig");

/// Files of a folder below the root with one of these endings, in their names' order.
pub fn filesOf(b: *std.Build, folder: []const u8, endings: []const []const u8) []const []const u8 {
    var dir = b.build_root.handle.openDir(folder, .{ .iterate = true }) catch |err| std.debug.panic("{s}: {t}", .{ folder, err });
    defer dir.close();
    var names: std.ArrayList([]const u8) = .empty;
    var each = dir.iterate();
    while (each.next() catch |err| std.debug.panic("{s}: {t}", .{ folder, err })) |entry| {
        for (endings) |ending| if (std.mem.endsWith(u8, entry.name, ending)) {
            names.append(b.allocator, b.pathJoin(&.{ folder, entry.name })) catch @panic("out of memory");
        };
    }
    std.mem.sort([]const u8, names.items, {}, lessThan);
    return names.items;
}

/// What kernels/gpu/*.cu include.
fn headersOf(b: *std.Build) []const []const u8 {
    return std.mem.concat(b.allocator, []const u8, &.{
        filesOf(b, "kernels/gpu", &.{ ".h", ".cuh" }),
        filesOf(b, "kernels/device", &.{ ".h", ".inc" }),
        filesOf(b, "kernels/include", &.{".h"}),
    }) catch @panic("out of memory");
}

fn lessThan(_: void, a: []const u8, b: []const u8) bool {
    return std.mem.lessThan(u8, a, b);
}

/// A CUDA toolkit: the system's, or the wheels that `KT_CUDA=1` has the set-up install.
const Toolkit = struct {
    nvcc: []const u8,
    /// Folder of libcudart_static.a.
    lib: []const u8,
};

pub fn exists(path: []const u8) bool {
    std.fs.cwd().access(path, .{}) catch return false;
    return true;
}

fn toolkitAt(b: *std.Build, root: []const u8) ?Toolkit {
    const nvcc = b.pathJoin(&.{ root, "bin", "nvcc" });
    if (!exists(nvcc)) return null;
    for ([_][]const u8{ "lib64", "lib", "targets/x86_64-linux/lib" }) |folder| {
        const lib = b.pathJoin(&.{ root, folder });
        if (exists(b.pathJoin(&.{ lib, "libcudart_static.a" }))) return .{ .nvcc = nvcc, .lib = lib };
    }
    return null;
}

fn findToolkit(b: *std.Build) ?Toolkit {
    if (b.graph.env_map.get("CUDA_HOME")) |root| if (toolkitAt(b, root)) |found| return found;
    if (b.findProgram(&.{"nvcc"}, &.{})) |nvcc| {
        const real = std.fs.cwd().realpathAlloc(b.allocator, nvcc) catch nvcc;
        if (toolkitAt(b, std.fs.path.dirname(std.fs.path.dirname(real) orelse ".") orelse ".")) |found| return found;
    } else |_| {}
    return toolkitAt(b, b.pathFromRoot(".toolchain/cuda/nvidia/cu13"));
}

/// `archs`: compute capabilities such as "80,90a".
pub fn addLibrary(b: *std.Build, optimize: std.builtin.OptimizeMode, archs: []const u8) *std.Build.Step {
    const toolkit = findToolkit(b) orelse
        return &b.addFail("-Dcuda needs nvcc 13: on PATH, in CUDA_HOME, or from `KT_CUDA=1 bun run setup`").step;
    if (b.findProgram(&.{"g++"}, &.{})) |_| {} else |_| return &b.addFail("-Dcuda needs g++ as nvcc's host compiler").step;
    const module = cpu.coreModule(b, "kernels/gpu/root.zig", optimize);
    // one file an op family; each is compiled by itself, so that they compile side by side
    const headers = headersOf(b);
    for (filesOf(b, "kernels/gpu", &.{".cu"})) |path| module.addObjectFile(compile(b, toolkit, path, headers, archs));
    module.addObjectFile(.{ .cwd_relative = b.pathJoin(&.{ toolkit.lib, "libcudart_static.a" }) });
    const lib = b.addLibrary(.{ .name = "kt_cuda", .linkage = .dynamic, .root_module = module });
    lib.linker_allow_shlib_undefined = false;
    return &b.addInstallArtifact(lib, .{}).step;
}

/// libkt_hip of the same sources, with hipcc from PATH; `archs`: such as "gfx90a,gfx1100". It is linked to ROCm's runtime.
pub fn addHipLibrary(b: *std.Build, optimize: std.builtin.OptimizeMode, archs: []const u8) *std.Build.Step {
    const hipcc = b.findProgram(&.{"hipcc"}, &.{"/opt/rocm/bin"}) catch return &b.addFail("`zig build hip` needs hipcc 5.2 or later on PATH").step;
    const module = cpu.coreModule(b, "kernels/gpu/root.zig", optimize);
    for (filesOf(b, "kernels/gpu", &.{".cu"})) |path| {
        const run = b.addSystemCommand(&.{
            hipcc,                  "-c",                  "-x",              "hip",                   "-O3",                             "-std=c++17",         "-fPIC",
            "-Wall",                "-Wextra",             "-Werror",
            // what the runtime's headers and kernels of another vendor are full of
                    "-Wno-unused-parameter", "-Wno-missing-field-initializers", "-Wno-unused-result", "-Wno-pass-failed",
            "-Wno-unused-function", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti",
        });
        const name = std.fs.path.stem(path);
        run.setName(b.fmt("hipcc {s}", .{name}));
        var each = std.mem.tokenizeScalar(u8, archs, ',');
        while (each.next()) |arch| run.addArg(b.fmt("--offload-arch={s}", .{arch}));
        run.addPrefixedDirectoryArg("-I", b.path("kernels/include"));
        run.addPrefixedDirectoryArg("-I", b.path("kernels/gpu"));
        for (headersOf(b)) |header| run.addFileInput(b.path(header));
        run.addFileArg(b.path(path));
        run.addArg("-o");
        module.addObjectFile(run.addOutputFileArg(b.fmt("{s}.o", .{name})));
    }
    for ([_][]const u8{ "/opt/rocm/lib/libamdhip64.so", "/usr/lib/x86_64-linux-gnu/libamdhip64.so" }) |path| {
        if (!exists(path)) continue;
        module.addObjectFile(.{ .cwd_relative = path });
        break;
    }
    const lib = b.addLibrary(.{ .name = "kt_hip", .linkage = .dynamic, .root_module = module });
    lib.linker_allow_shlib_undefined = true;
    return &b.addInstallArtifact(lib, .{}).step;
}

fn compile(b: *std.Build, toolkit: Toolkit, path: []const u8, headers: []const []const u8, archs: []const u8) std.Build.LazyPath {
    const name = std.fs.path.stem(path);
    const run = b.addSystemCommand(&.{
        toolkit.nvcc,      "-c",
        "-O3",             "-std=c++17",
        "-Werror",         "all-warnings",
        "-lineinfo",       "--expt-relaxed-constexpr",
        "-Xcompiler",      "-fPIC,-fvisibility=hidden,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics,-Wall,-Wextra,-Werror",
        // what nvcc writes itself
        "-Xcompiler",      "-Wno-unused-parameter,-Wno-missing-field-initializers",
        "--compress-mode", "size",
    });
    run.setName(b.fmt("nvcc {s}", .{name}));
    var each = std.mem.tokenizeScalar(u8, archs, ',');
    while (each.next()) |arch| run.addArg(b.fmt("-gencode=arch=compute_{s},code=sm_{s}", .{ arch, arch }));
    run.addPrefixedDirectoryArg("-I", b.path("kernels/include"));
    run.addPrefixedDirectoryArg("-I", b.path("kernels/gpu"));
    for (headers) |header| run.addFileInput(b.path(header));
    run.addFileArg(b.path(path));
    run.addArg("-o");
    return run.addOutputFileArg(b.fmt("{s}.o", .{name}));
}
