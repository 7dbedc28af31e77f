//! kt.h as a TypeScript table, by comptime reflection, and its hash: what src/native/abi.generated.ts holds and what
//! every library answers from kt_abi_hash(), so that a library and a table of different headers refuse each other.
const std = @import("std");
pub const c = @cImport(@cInclude("kt.h"));

pub const text: []const u8 = render();
pub const hash: u64 = blk: {
    @setEvalBranchQuota(1_000_000);
    break :blk std.hash.Fnv1a_64.hash(text);
};

fn render() []const u8 {
    @setEvalBranchQuota(2_000_000);
    comptime var symbols: []const u8 = "";
    comptime var layouts: []const u8 = "";
    comptime var constants: []const u8 = "";
    for (@typeInfo(c).@"struct".decls) |decl| {
        if (std.mem.startsWith(u8, decl.name, "kt_")) {
            const value = @field(c, decl.name);
            if (@TypeOf(value) == type) {
                if (std.mem.endsWith(u8, decl.name, "_t")) layouts = layouts ++ layoutOf(decl.name, value);
            } else {
                symbols = symbols ++ symbolOf(decl.name, @typeInfo(@TypeOf(value)).@"fn");
            }
        } else if (std.mem.startsWith(u8, decl.name, "KT_") and !isHelper(decl.name)) {
            const value = @field(c, decl.name);
            switch (@typeInfo(@TypeOf(value))) {
                .int, .comptime_int => constants = constants ++ std.fmt.comptimePrint("export const {s} = {d}\n", .{ decl.name, value }),
                else => {},
            }
        }
    }
    return "export const symbols = {\n" ++ symbols ++ "} as const\n\nexport const layouts = {\n" ++ layouts ++ "} as const\n\n" ++ constants;
}

/// Macros that are not values.
fn isHelper(comptime name: []const u8) bool {
    for ([_][]const u8{ "KT_H", "KT_API", "KT_STATIC_ASSERT" }) |helper| if (std.mem.eql(u8, name, helper)) return true;
    return false;
}

fn symbolOf(comptime name: []const u8, comptime info: std.builtin.Type.Fn) []const u8 {
    comptime var args: []const u8 = "";
    for (info.params, 0..) |param, i| args = args ++ (if (i == 0) "" else ", ") ++ "\"" ++ ffiType(param.type.?) ++ "\"";
    return "  " ++ name ++ ": { args: [" ++ args ++ "], returns: \"" ++ ffiReturn(name, info.return_type.?) ++ "\" },\n";
}

fn ffiReturn(comptime name: []const u8, comptime T: type) []const u8 {
    if (T == void) return "void";
    if (std.mem.endsWith(u8, name, "_error") or std.mem.endsWith(u8, name, "_name")) return "cstring";
    return ffiType(T);
}

fn ffiType(comptime T: type) []const u8 {
    return switch (@typeInfo(T)) {
        .pointer, .optional => "ptr",
        .float => |f| if (f.bits == 32) "f32" else "f64",
        .int => |i| (if (i.signedness == .signed) "i" else "u") ++ std.fmt.comptimePrint("{d}", .{i.bits}),
        else => @compileError("kt.h: type " ++ @typeName(T) ++ " may not cross the ABI"),
    };
}

fn layoutOf(comptime name: []const u8, comptime T: type) []const u8 {
    const info = switch (@typeInfo(T)) {
        .@"struct" => |s| s,
        else => return "", // opaque handles and kt_status_t
    };
    comptime var fields: []const u8 = "";
    for (info.fields, 0..) |field, i| {
        fields = fields ++ (if (i == 0) "" else ", ") ++ field.name ++ ": " ++ std.fmt.comptimePrint("{d}", .{@offsetOf(T, field.name)});
    }
    return std.fmt.comptimePrint("  {s}: {{ size: {d}, align: {d}, fields: {{ ", .{ name[0 .. name.len - 2], @sizeOf(T), @alignOf(T) }) ++ fields ++ " } },\n";
}
