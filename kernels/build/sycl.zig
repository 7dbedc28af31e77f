//! libkt_sycl: kernels/sycl/*.cpp and the core that all libraries share, compiled and linked by a SYCL 2020 compiler.
const std = @import("std");
const cpu = @import("cpu.zig");
const gpu = @import("gpu.zig");

/// Words of a command that compiles SYCL: KT_SYCL_CXX, or the first that is found of AdaptiveCpp's, oneAPI's, and a clang++ that
/// comes with SYCL's headers.
fn findCompiler(b: *std.Build) ?[]const []const u8 {
    if (b.graph.env_map.get("KT_SYCL_CXX")) |command| if (command.len > 0) {
        var words: std.ArrayList([]const u8) = .empty;
        var each = std.mem.tokenizeScalar(u8, command, ' ');
        while (each.next()) |word| words.append(b.allocator, word) catch @panic("out of memory");
        return words.items;
    };
    if (b.findProgram(&.{"acpp"}, &.{})) |acpp| return b.dupeStrings(&.{acpp}) else |_| {}
    // what oneAPI leaves out of its results by default counts here: NaN, and the order of sums
    if (b.findProgram(&.{"icpx"}, &.{"/opt/intel/oneapi/compiler/latest/bin"})) |icpx|
        return b.dupeStrings(&.{ icpx, "-fsycl", "-fp-model=precise" })
    else |_| {}
    if (b.findProgram(&.{"clang++"}, &.{})) |clang| {
        const real = std.fs.cwd().realpathAlloc(b.allocator, clang) catch clang;
        const root = std.fs.path.dirname(std.fs.path.dirname(real) orelse ".") orelse ".";
        if (gpu.exists(b.pathJoin(&.{ root, "include", "sycl", "sycl.hpp" }))) return b.dupeStrings(&.{ clang, "-fsycl" });
    } else |_| {}
    return null;
}

fn isIntels(command: []const []const u8) bool {
    for (command) |word| if (std.mem.eql(u8, word, "-fsycl")) return true;
    return false;
}

pub fn addLibrary(b: *std.Build, optimize: std.builtin.OptimizeMode) *std.Build.Step {
    const compiler = findCompiler(b) orelse
        return &b.addFail("`zig build sycl` needs a SYCL 2020 compiler: acpp, icpx or a clang++ with SYCL on PATH, or KT_SYCL_CXX (such as \"clang++ -fsycl\")").step;
    const core = b.addObject(.{ .name = "kt_sycl_core", .root_module = cpu.coreModule(b, "kernels/sycl/root.zig", optimize) });
    core.bundle_compiler_rt = true;
    const link = b.addSystemCommand(compiler);
    link.setName("link libkt_sycl");
    link.addArgs(&.{ "-shared", "-O3" });
    for (gpu.filesOf(b, "kernels/sycl", &.{".cpp"})) |path| link.addFileArg(compile(b, compiler, path));
    link.addFileArg(core.getEmittedBin());
    // templates of the standard library are exported otherwise
    link.addPrefixedFileArg("-Wl,--version-script=", b.path("kernels/sycl/exports.map"));
    link.addArg("-o");
    return &b.addInstallLibFile(link.addOutputFileArg("libkt_sycl.so"), "libkt_sycl.so").step;
}

fn compile(b: *std.Build, compiler: []const []const u8, path: []const u8) std.Build.LazyPath {
    const name = std.fs.path.stem(path);
    const run = b.addSystemCommand(compiler);
    run.setName(b.fmt("sycl {s}", .{name}));
    run.addArgs(&.{ "-c", "-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror" });
    // of which some compilers know one, and others none
    run.addArg("-Wno-unknown-pragmas");
    // more work-items than an int counts
    if (isIntels(compiler)) run.addArg("-fno-sycl-id-queries-fit-in-int");
    run.addPrefixedDirectoryArg("-I", b.path("kernels/include"));
    const headers = [_][]const []const u8{
        gpu.filesOf(b, "kernels/sycl", &.{".hpp"}),
        gpu.filesOf(b, "kernels/device", &.{ ".h", ".inc" }),
        gpu.filesOf(b, "kernels/include", &.{".h"}),
    };
    for (headers) |folder| for (folder) |header| run.addFileInput(b.path(header));
    run.addFileArg(b.path(path));
    run.addArg("-o");
    return run.addOutputFileArg(b.fmt("{s}.o", .{name}));
}
