// Instructions of registers alone: arithmetic, comparisons, conversions, lane by lane.
#pragma once
#include <limits>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>

#include "machine.h"

using std::string;
static std::unordered_map<string, Handler> table;

// Lanes

template <class F> static inline void each(u32 active, F f) {
  if (active == ALL) {
#pragma GCC ivdep  // a register is another or the same, never a shifted one
    for (int l = 0; l < LANES; l++) f(l);
  } else {
    for (; active; active &= active - 1) f(__builtin_ctz(active));
  }
}

// registers[0] = f(registers[1], ...), in each active lane. What a handler does is a lambda's type: it holds nothing.
template <class D, class... S, class F> static Handler lanewise(F) {
  return [](Warp& w, const i64* o) {
    [&]<size_t... i>(std::index_sequence<i...>) {
      D* d = w.at<D>(o[0]);
      const auto sources = std::make_tuple(w.at<S>(o[1 + i])...);
      each(w.active, [&](int l) { d[l] = D(F()(std::get<i>(sources)[l]...)); });
    }(std::index_sequence_for<S...>());
  };
}

// Numbers

template <class T> static T from_bits(auto bits) { T x; memcpy(&x, &bits, sizeof x); return x; }

struct Bf16 {
  static f32 widen(u16 x) { return from_bits<f32>(u32(x) << 16); }
  static u16 round(f32 x) {  // to nearest even
    const u32 bits = from_bits<u32>(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
};

struct F16 {
  static f32 widen(u16 x) {
    const u32 magnitude = (x & 0x7fff) << 13, sign = u32(x & 0x8000) << 16;
    const f32 finite = from_bits<f32>(magnitude) * 0x1p112f;  // the exponent's bias grows from 15 to 127
    return from_bits<f32>((magnitude >= 0x7c00u << 13 ? magnitude | 0x7f800000 : from_bits<u32>(finite)) | sign);
  }
  static u16 round(f32 x) {  // to nearest even
    const u32 bits = from_bits<u32>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and more
    if (magnitude < 0x38800000) return sign | u16(nearbyintf(from_bits<f32>(magnitude) * 0x1p24f));  // subnormal
    return sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
  }
};

// 2^x to 2 ulp, subnormal results to 0, as ex2.approx.ftz. Without branches, so that compilers use vectors.
static inline f32 power_of_two(f32 x) {
  const f32 bounded = x < -126.f ? -126.f : x > 128.f ? 128.f : x;
  const f32 finite = bounded == bounded ? bounded : 0.f;
  const f32 whole = (finite + 0x1.8p23f) - 0x1.8p23f, part = bounded - whole;  // to the nearest
  f32 p = 1.5252734e-5f;  // ln(2)^k / k!
  for (f32 c : {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.f})
    p = p * part + c;
  const f32 half = from_bits<f32>((i32(whole) / 2 + 127) << 23);
  const f32 rest = from_bits<f32>((i32(whole) - i32(whole) / 2 + 127) << 23);
  return x < -126.f ? 0.f : p * half * rest;
}

// Of a number and NaN, PTX takes the number.
constexpr auto lowest = [](f32 a, f32 b) { return a != a ? b : b != b ? a : a < b ? a : b; };
constexpr auto highest = [](f32 a, f32 b) { return a != a ? b : b != b ? a : a > b ? a : b; };

// Arithmetic

template <class T> static void integers(const string& type) {
  constexpr int BITS = 8 * sizeof(T);
  table["add." + type] = lanewise<T, T, T>([](T a, T b) { return a + b; });
  table["sub." + type] = lanewise<T, T, T>([](T a, T b) { return a - b; });
  table["mul." + type] = lanewise<T, T, T>([](T a, T b) { return a * b; });
  table["mad." + type] = lanewise<T, T, T, T>([](T a, T b, T c) { return a * b + c; });
  // By 0 what the chip gives; the least number by -1 would trap here.
  static constexpr auto minus = [](T b) { return std::is_signed_v<T> && b == T(-1); };
  table["div." + type] = lanewise<T, T, T>([](T a, T b) { return b == 0 ? T(-1) : minus(b) ? T(-a) : T(a / b); });
  table["rem." + type] = lanewise<T, T, T>([](T a, T b) { return b == 0 ? a : minus(b) ? T(0) : T(a % b); });
  table["min." + type] = lanewise<T, T, T>([](T a, T b) { return a < b ? a : b; });
  table["max." + type] = lanewise<T, T, T>([](T a, T b) { return a > b ? a : b; });
  table["neg." + type] = lanewise<T, T>([](T a) { return -a; });
  table["abs." + type] = lanewise<T, T>([](T a) { return a < 0 ? -a : a; });
  table["shr." + type] = lanewise<T, T, u32>([](T a, u32 n) { return n < BITS ? a >> n : a < 0 ? -1 : 0; });
  table["mul.hi." + type] = lanewise<T, T, T>([](T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return T(Wide(a) * Wide(b) >> BITS); });
}

template <class T, class Wide> static void wide_integers(const string& type) {
  table["mul.wide." + type] = lanewise<Wide, T, T>([](T a, T b) { return Wide(a) * Wide(b); });
  table["mad.wide." + type] = lanewise<Wide, T, T, Wide>([](T a, T b, Wide c) { return Wide(a) * Wide(b) + c; });
}

template <class T> static void bits(const string& type) {
  constexpr u32 BITS = 8 * sizeof(T);
  table["and." + type] = lanewise<T, T, T>([](T a, T b) { return a & b; });
  table["or." + type] = lanewise<T, T, T>([](T a, T b) { return a | b; });
  table["xor." + type] = lanewise<T, T, T>([](T a, T b) { return a ^ b; });
  table["not." + type] = lanewise<T, T>([](T a) { return ~a; });
  table["shl." + type] = lanewise<T, T, u32>([](T a, u32 n) { return n < BITS ? T(a) << n : 0; });
  table["shr." + type] = lanewise<T, T, u32>([](T a, u32 n) { return n < BITS ? a >> n : 0; });
  table["mov." + type] = lanewise<T, T>([](T a) { return a; });
  table["popc." + type] = lanewise<u32, T>([](T a) { return __builtin_popcountll(a); });
  table["clz." + type] = lanewise<u32, T>([](T a) { return a ? __builtin_clzll(a) - (64 - BITS) : BITS; });
  table["selp." + type] = [](Warp& w, const i64* o) {
    T *d = w.at<T>(o[0]), *a = w.at<T>(o[1]), *b = w.at<T>(o[2]);
    const u32 chosen = *w.at<u32>(o[3]);
    each(w.active, [&](int l) { d[l] = chosen >> l & 1 ? a[l] : b[l]; });
  };
}

static void floats() {
  table["add.f32"] = lanewise<f32, f32, f32>([](f32 a, f32 b) { return a + b; });
  table["sub.f32"] = lanewise<f32, f32, f32>([](f32 a, f32 b) { return a - b; });
  table["mul.f32"] = lanewise<f32, f32, f32>([](f32 a, f32 b) { return a * b; });
  table["div.f32"] = lanewise<f32, f32, f32>([](f32 a, f32 b) { return a / b; });
  table["fma.f32"] = lanewise<f32, f32, f32, f32>([](f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); });
  table["min.f32"] = lanewise<f32, f32, f32>(lowest);
  table["max.f32"] = lanewise<f32, f32, f32>(highest);
  table["neg.f32"] = lanewise<u32, u32>([](u32 a) { return a ^ 0x80000000; });
  table["abs.f32"] = lanewise<u32, u32>([](u32 a) { return a & 0x7fffffff; });
  table["ex2.f32"] = lanewise<f32, f32>([](f32 a) { return power_of_two(a); });
  table["lg2.f32"] = lanewise<f32, f32>([](f32 a) { return log2f(a); });
  table["rcp.f32"] = lanewise<f32, f32>([](f32 a) { return 1.f / a; });
  table["sqrt.f32"] = lanewise<f32, f32>([](f32 a) { return sqrtf(a); });
  table["rsqrt.f32"] = lanewise<f32, f32>([](f32 a) { return 1.f / sqrtf(a); });
  table["tanh.f32"] = lanewise<f32, f32>([](f32 a) { return tanhf(a); });
  struct Two { f32 a, b; };  // .f32x2
  table["add.f32x2"] = lanewise<Two, Two, Two>([](Two x, Two y) { return Two{x.a + y.a, x.b + y.b}; });
  table["sub.f32x2"] = lanewise<Two, Two, Two>([](Two x, Two y) { return Two{x.a - y.a, x.b - y.b}; });
  table["mul.f32x2"] = lanewise<Two, Two, Two>([](Two x, Two y) { return Two{x.a * y.a, x.b * y.b}; });
  table["fma.f32x2"] = lanewise<Two, Two, Two, Two>([](Two x, Two y, Two z) {
    return Two{__builtin_fmaf(x.a, y.a, z.a), __builtin_fmaf(x.b, y.b, z.b)}; });
}

static void fields() {
  table["bfe.u32"] = lanewise<u32, u32, u32, u32>([](u32 a, u32 from, u32 length) {
    from &= 255, length &= 255;
    return from > 31 ? 0 : a >> from & (length > 31 ? ALL : (1u << length) - 1); });
  table["bfe.s32"] = lanewise<i32, i32, u32, u32>([](i32 a, u32 from, u32 length) -> i32 {
    from &= 255, length &= 255;
    if (length == 0) return 0;
    if (from > 31) return a >> 31;
    const u32 top = std::min(from + length - 1, 31u);
    return i32(u32(a) << (31 - top)) >> (31 - top + from); });
  table["bfi.b32"] = lanewise<u32, u32, u32, u32, u32>([](u32 a, u32 b, u32 from, u32 length) {
    from &= 255, length &= 255;
    const u32 mask = from > 31 ? 0 : (length > 31 ? ALL : (1u << length) - 1) << from;
    return (b & ~mask) | (from > 31 ? 0 : a << from & mask); });
  table["prmt.b32"] = lanewise<u32, u32, u32, u32>([](u32 a, u32 b, u32 selector) {
    const u64 bytes = u64(b) << 32 | a;
    u32 found = 0;
    for (int i = 0; i < 4; i++) {
      const u32 s = selector >> 4 * i & 15, byte = bytes >> 8 * (s & 7) & 255;
      found |= (s & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * i;
    }
    return found; });
  table["shf.l.wrap.b32"] = lanewise<u32, u32, u32, u32>([](u32 low, u32 high, u32 n) {
    return (u64(high) << 32 | low) << (n & 31) >> 32; });
  table["shf.r.wrap.b32"] = lanewise<u32, u32, u32, u32>([](u32 low, u32 high, u32 n) {
    return (u64(high) << 32 | low) >> (n & 31); });
}

// Comparisons: the predicate registers are masks of lanes

static void set(Warp& w, i64 predicate, u32 mask) {
  u32& p = *w.at<u32>(predicate);
  p = (p & ~w.active) | (mask & w.active);
}

template <class T, class F> static Handler compare(F) {
  return [](Warp& w, const i64* o) {
    const T *a = w.at<T>(o[1]), *b = w.at<T>(o[2]);
    u32 mask = 0;
    for (int l = 0; l < LANES; l++) mask |= u32(F()(a[l], b[l])) << l;
    set(w, o[0], mask);
  };
}

template <class T> static void comparisons(const string& type) {
  table["setp.eq." + type] = compare<T>([](T a, T b) { return a == b; });
  table["setp.ne." + type] = compare<T>([](T a, T b) { return a < b || a > b; });  // of floats: ordered
  table["setp.lt." + type] = compare<T>([](T a, T b) { return a < b; });
  table["setp.le." + type] = compare<T>([](T a, T b) { return a <= b; });
  table["setp.gt." + type] = compare<T>([](T a, T b) { return a > b; });
  table["setp.ge." + type] = compare<T>([](T a, T b) { return a >= b; });
}

static void unordered_comparisons() {
  table["setp.equ.f32"] = compare<f32>([](f32 a, f32 b) { return !(a < b || a > b); });
  table["setp.neu.f32"] = compare<f32>([](f32 a, f32 b) { return !(a == b); });
  table["setp.ltu.f32"] = compare<f32>([](f32 a, f32 b) { return !(a >= b); });
  table["setp.leu.f32"] = compare<f32>([](f32 a, f32 b) { return !(a > b); });
  table["setp.gtu.f32"] = compare<f32>([](f32 a, f32 b) { return !(a <= b); });
  table["setp.geu.f32"] = compare<f32>([](f32 a, f32 b) { return !(a < b); });
  table["setp.num.f32"] = compare<f32>([](f32 a, f32 b) { return a == a && b == b; });
  table["setp.nan.f32"] = compare<f32>([](f32 a, f32 b) { return a != a || b != b; });
}

template <int sources, class F> static Handler logic(F) {
  return [](Warp& w, const i64* o) { set(w, o[0], F()(*w.at<u32>(o[1]), *w.at<u32>(o[sources]))); };
}

static void predicates() {
  table["and.pred"] = logic<2>([](u32 a, u32 b) { return a & b; });
  table["or.pred"] = logic<2>([](u32 a, u32 b) { return a | b; });
  table["xor.pred"] = logic<2>([](u32 a, u32 b) { return a ^ b; });
  table["not.pred"] = logic<1>([](u32 a, u32) { return ~a; });
  table["mov.pred"] = logic<1>([](u32 a, u32) { return a; });
  table["elect"] = [](Warp& w, const i64* o) {  // which lane is chosen is the chip's affair; here the first
    each(w.active, [&](int l) { w.at<u32>(o[0])[l] = 0; });
    set(w, o[1], 1);
  };
}

// Conversions. A register may be wider than the number in it.
// o = {to, bytes of its register, from, bytes of its register}

template <class T> static T get(const u8* at) { T x; memcpy(&x, at, sizeof x); return x; }

template <class T> static void put(u8* at, i64 bytes, T x) {
  using Wide = std::conditional_t<std::is_signed_v<T>, i64, u64>;
  if constexpr (std::is_integral_v<T>) {
    const Wide wide = x;
    memcpy(at, &wide, bytes);
  } else {
    memcpy(at, &x, sizeof x);
  }
}

template <class D, class S, class F> static Handler convert(F) {
  return [](Warp& w, const i64* o) {
    u8 *d = w.at<u8>(o[0]), *s = w.at<u8>(o[2]);
    each(w.active, [&](int l) { put<D>(d + l * o[1], o[1], F()(get<S>(s + l * o[3]))); });
  };
}

template <class D, class S> static void between_integers(const string& to, const string& from) {
  table["cvt." + to + "." + from] = convert<D, S>([](S x) { return D(x); });
}

template <class S> static void from_integer(const string& from) {
  between_integers<i8, S>("s8", from), between_integers<u8, S>("u8", from);
  between_integers<i16, S>("s16", from), between_integers<u16, S>("u16", from);
  between_integers<i32, S>("s32", from), between_integers<u32, S>("u32", from);
  between_integers<i64, S>("s64", from), between_integers<u64, S>("u64", from);
  table["cvt.f32." + from] = convert<f32, S>([](S x) { return f32(x); });
}

template <class D> static D bounded(f32 x) {  // PTX saturates, and takes NaN for 0
  if (x != x) return 0;
  if (x <= f32(std::numeric_limits<D>::min())) return std::numeric_limits<D>::min();
  return x >= f32(std::numeric_limits<D>::max()) ? std::numeric_limits<D>::max() : D(x);
}

template <class D> static void from_float(const string& to) {
  table["cvt.rzi." + to + ".f32"] = convert<D, f32>([](f32 x) { return bounded<D>(truncf(x)); });
  table["cvt.rni." + to + ".f32"] = convert<D, f32>([](f32 x) { return bounded<D>(nearbyintf(x)); });
  table["cvt.rmi." + to + ".f32"] = convert<D, f32>([](f32 x) { return bounded<D>(floorf(x)); });
  table["cvt.rpi." + to + ".f32"] = convert<D, f32>([](f32 x) { return bounded<D>(ceilf(x)); });
}

template <class Half> static void halves(const string& type) {
  table["fma.f32." + type] = lanewise<f32, u16, u16, f32>([](u16 a, u16 b, f32 c) {
    return Half::widen(a) * Half::widen(b) + c; });
  table["add.f32." + type] = lanewise<f32, u16, f32>([](u16 a, f32 b) { return Half::widen(a) + b; });
  table["sub.f32." + type] = lanewise<f32, u16, f32>([](u16 a, f32 b) { return Half::widen(a) - b; });
  table["cvt.f32." + type] = convert<f32, u16>([](u16 x) { return Half::widen(x); });
  table["cvt." + type + ".f32"] = convert<u16, f32>([](f32 x) { return Half::round(x); });
  table["cvt." + type + "x2.f32"] = lanewise<u32, f32, f32>([](f32 high, f32 low) {
    return u32(Half::round(high)) << 16 | Half::round(low); });
}

static void conversions() {
  from_integer<i8>("s8"), from_integer<u8>("u8"), from_integer<i16>("s16"), from_integer<u16>("u16");
  from_integer<i32>("s32"), from_integer<u32>("u32"), from_integer<i64>("s64"), from_integer<u64>("u64");
  from_float<i32>("s32"), from_float<u32>("u32"), from_float<i64>("s64");
  halves<Bf16>("bf16"), halves<F16>("f16");
  table["cvt.rzi.f32.f32"] = convert<f32, f32>([](f32 x) { return truncf(x); });
  table["cvt.rni.f32.f32"] = convert<f32, f32>([](f32 x) { return nearbyintf(x); });
  table["cvt.rmi.f32.f32"] = convert<f32, f32>([](f32 x) { return floorf(x); });
  table["cvt.rpi.f32.f32"] = convert<f32, f32>([](f32 x) { return ceilf(x); });
  // o = {bytes of a part, parts, the whole, parts...}
  table["pack"] = [](Warp& w, const i64* o) {
    each(w.active, [&](int l) {
      u64 whole = 0;
      for (i64 i = 0; i < o[1]; i++) memcpy((u8*)&whole + i * o[0], w.at<u8>(o[3 + i]) + l * o[0], o[0]);
      memcpy(w.at<u8>(o[2]) + l * o[0] * o[1], &whole, o[0] * o[1]);
    });
  };
  table["unpack"] = [](Warp& w, const i64* o) {
    each(w.active, [&](int l) {
      u64 whole = 0;
      memcpy(&whole, w.at<u8>(o[2]) + l * o[0] * o[1], o[0] * o[1]);
      for (i64 i = 0; i < o[1]; i++) memcpy(w.at<u8>(o[3 + i]) + l * o[0], (u8*)&whole + i * o[0], o[0]);
    });
  };
}

static void registers_alone() {
  integers<i16>("s16"), integers<i32>("s32"), integers<i64>("s64");
  integers<u16>("u16"), integers<u32>("u32"), integers<u64>("u64");
  wide_integers<i16, i32>("s16"), wide_integers<i32, i64>("s32");
  wide_integers<u16, u32>("u16"), wide_integers<u32, u64>("u32");
  bits<u16>("b16"), bits<u32>("b32"), bits<u64>("b64");
  comparisons<i16>("s16"), comparisons<i32>("s32"), comparisons<i64>("s64"), comparisons<f32>("f32");
  comparisons<u16>("u16"), comparisons<u32>("u32"), comparisons<u64>("u64");
  comparisons<u16>("b16"), comparisons<u32>("b32"), comparisons<u64>("b64");
  unordered_comparisons(), predicates(), floats(), fields(), conversions();
}
