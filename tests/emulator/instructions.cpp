// What each PTX instruction does to a warp. `encode.py` writes their operands; names are those of PTX without what makes
// no difference here (rounding to nearest, cache hints, scopes).
#include <algorithm>
#include <type_traits>
#include <unordered_map>

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
  for (f32 c : {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.f}) p = p * part + c;
  const f32 half = from_bits<f32>((i32(whole) / 2 + 127) << 23);
  const f32 rest = from_bits<f32>((i32(whole) - i32(whole) / 2 + 127) << 23);
  return x < -126.f ? 0.f : p * half * rest;
}

// Of a number and NaN, PTX takes the number.
constexpr auto lowest = [](f32 a, f32 b) { return a != a ? b : b != b ? a : a < b ? a : b; };
constexpr auto highest = [](f32 a, f32 b) { return a != a ? b : b != b ? a : a > b ? a : b; };

// Arithmetic

template <class T> static void integers(const string& type) {
  using U = std::make_unsigned_t<T>;
  constexpr int BITS = 8 * sizeof(T);
  table["add." + type] = lanewise<T, T, T>([](T a, T b) { return a + b; });
  table["sub." + type] = lanewise<T, T, T>([](T a, T b) { return a - b; });
  table["mul." + type] = lanewise<T, T, T>([](T a, T b) { return a * b; });
  table["mad." + type] = lanewise<T, T, T, T>([](T a, T b, T c) { return a * b + c; });
  table["div." + type] = lanewise<T, T, T>([](T a, T b) { return b == 0 ? T(-1) : b == T(-1) && T(-1) < 0 ? T(-a) : T(a / b); });
  table["rem." + type] = lanewise<T, T, T>([](T a, T b) { return b == 0 ? a : b == T(-1) && T(-1) < 0 ? T(0) : T(a % b); });
  table["min." + type] = lanewise<T, T, T>([](T a, T b) { return a < b ? a : b; });
  table["max." + type] = lanewise<T, T, T>([](T a, T b) { return a > b ? a : b; });
  table["neg." + type] = lanewise<T, T>([](T a) { return -a; });
  table["abs." + type] = lanewise<T, T>([](T a) { return a < 0 ? -a : a; });
  table["shr." + type] = lanewise<T, T, u32>([](T a, u32 n) { return n < BITS ? a >> n : a < 0 ? -1 : 0; });
  table["mul.hi." + type] = lanewise<T, T, T>([](T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return T(Wide(a) * Wide(b) >> BITS); });
  table["popc." + type] = lanewise<u32, T>([](T a) { return __builtin_popcountll(U(a)); });
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
  table["shf.l.wrap.b32"] = lanewise<u32, u32, u32, u32>([](u32 low, u32 high, u32 n) { return (u64(high) << 32 | low) << (n & 31) >> 32; });
  table["shf.r.wrap.b32"] = lanewise<u32, u32, u32, u32>([](u32 low, u32 high, u32 n) { return (u64(high) << 32 | low) >> (n & 31); });
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

// Conversions. A register may be wider than the number in it: o = {to, bytes of its register, from, bytes of its register}

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
  table["fma.f32." + type] = lanewise<f32, u16, u16, f32>([](u16 a, u16 b, f32 c) { return Half::widen(a) * Half::widen(b) + c; });
  table["add.f32." + type] = lanewise<f32, u16, f32>([](u16 a, f32 b) { return Half::widen(a) + b; });
  table["sub.f32." + type] = lanewise<f32, u16, f32>([](u16 a, f32 b) { return Half::widen(a) - b; });
  table["cvt.f32." + type] = convert<f32, u16>([](u16 x) { return Half::widen(x); });
  table["cvt." + type + ".f32"] = convert<u16, f32>([](f32 x) { return Half::round(x); });
  table["cvt." + type + "x2.f32"] = lanewise<u32, f32, f32>([](f32 high, f32 low) { return u32(Half::round(high)) << 16 | Half::round(low); });
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

// Between lanes

template <class F> static Handler shuffle(F) {  // o = {to, whether the lane is there, from, b, c}
  return [](Warp& w, const i64* o) {
    u32 *d = w.at<u32>(o[0]), *a = w.at<u32>(o[2]), *b = w.at<u32>(o[3]), *c = w.at<u32>(o[4]), found[LANES], there = 0;
    for (int l = 0; l < LANES; l++) {
      const int segment = c[l] >> 8 & 31, last = (l & segment) | (c[l] & 31 & ~segment);
      const auto [j, inside] = F()(l, int(b[l] & 31), segment, last);
      there |= u32(inside) << l;
      found[l] = a[inside ? j : l];
    }
    each(w.active, [&](int l) { d[l] = found[l]; });
    set(w, o[1], there);
  };
}

template <class F> static Handler reduce(F) {
  return [](Warp& w, const i64* o) {
    w.together("an instruction of whole warps");
    const u32* a = w.at<u32>(o[1]);
    u32 found = a[0];
    for (int l = 1; l < LANES; l++) found = F()(found, a[l]);
    each(ALL, [&](int l) { w.at<u32>(o[0])[l] = found; });
  };
}

static void between_lanes() {
  using Lane = std::pair<int, bool>;
  table["shfl.up.b32"] = shuffle([](int l, int n, int, int last) { return Lane{l - n, l - n >= last}; });
  table["shfl.down.b32"] = shuffle([](int l, int n, int, int last) { return Lane{l + n, l + n <= last}; });
  table["shfl.bfly.b32"] = shuffle([](int l, int n, int, int last) { return Lane{l ^ n, (l ^ n) <= last}; });
  table["shfl.idx.b32"] = shuffle([](int l, int n, int segment, int last) {
    const int j = (l & segment) | (n & ~segment);
    return Lane{j, j <= last}; });
  table["redux.add.s32"] = table["redux.add.u32"] = reduce([](u32 a, u32 b) { return a + b; });
  table["redux.min.u32"] = reduce([](u32 a, u32 b) { return std::min(a, b); });
  table["redux.max.u32"] = reduce([](u32 a, u32 b) { return std::max(a, b); });
  table["redux.min.s32"] = reduce([](i32 a, i32 b) { return std::min(a, b); });
  table["redux.max.s32"] = reduce([](i32 a, i32 b) { return std::max(a, b); });
  table["redux.and.b32"] = reduce([](u32 a, u32 b) { return a & b; });
  table["redux.or.b32"] = reduce([](u32 a, u32 b) { return a | b; });
  table["redux.xor.b32"] = reduce([](u32 a, u32 b) { return a ^ b; });
  table["vote.ballot.b32"] = [](Warp& w, const i64* o) {
    const u32 mask = *w.at<u32>(o[1]);
    each(w.active, [&](int l) { w.at<u32>(o[0])[l] = mask; });
  };
  table["vote.any.pred"] = logic<1>([](u32 a, u32) { return a ? ALL : 0; });
  table["vote.all.pred"] = logic<1>([](u32 a, u32) { return a == ALL ? ALL : 0; });
}

// Loads and stores. o = {address, bytes of its register, offset, bytes of a value's register, values, registers...}

static inline u64 address(Warp& w, const i64* o, int lane) {
  const u8* at = w.at<u8>(o[0]) + lane * o[1];
  return (o[1] == 4 ? get<u32>(at) : get<u64>(at)) + o[2];
}

template <class T, auto memory> static void load(Warp& w, const i64* o) {
  const i64 bytes = o[3], values = o[4];
  each(w.active, [&](int l) {
    const T* from = (const T*)(w.block.*memory)(address(w, o, l), sizeof(T) * values);
    for (i64 i = 0; i < values; i++) put<T>(w.at<u8>(o[5 + i]) + l * bytes, bytes, from[i]);
  });
}

template <class T, auto memory, bool is_shared> static void store(Warp& w, const i64* o) {
  const i64 bytes = o[3], values = o[4];
  each(w.active, [&](int l) {
    const u64 to = address(w, o, l);
    u8* at = (w.block.*memory)(to, sizeof(T) * values);
    for (i64 i = 0; i < values; i++) memcpy(at + i * sizeof(T), w.at<u8>(o[5 + i]) + l * bytes, sizeof(T));
    if (is_shared) w.block.wrote(to, sizeof(T) * values);
  });
}

template <class T> static void memory(const string& type) {
  table["ld.param." + type] = load<T, &Block::parameter>;
  table["ld.global." + type] = load<T, &Block::global>;
  table["ld.shared." + type] = load<T, &Block::shared>;
  table["st.global." + type] = store<T, &Block::global, false>;
  table["st.shared." + type] = store<T, &Block::shared, true>;
}

static void copy_now(Warp& w, const Copy& c) {
  u8* to = w.block.shared(c.shared, c.bytes);
  memset(to, 0, c.bytes);
  memcpy(to, (const u8*)c.global, c.valid);
  w.block.wrote(c.shared, c.bytes);
}

// Rows of 16 bytes of 8 x 8 matrices of b16: row i of matrix j is at the address that lane 8 j + i holds.
// o = {address, bytes of its register, offset, transposed, matrices, registers...}
template <bool loads> static void matrices(Warp& w, const i64* o) {
  w.together("an instruction of whole warps");
  for (i64 j = 0; j < o[4]; j++) {
    u8* rows[8];
    for (int i = 0; i < 8; i++) {
      const u64 at = address(w, o, 8 * j + i);
      rows[i] = w.block.shared(at, 16);
      if (!loads) w.block.wrote(at, 16);
    }
    u16* mine = w.at<u16>(o[5 + j]);
    for (int l = 0; l < LANES; l++)
      for (int h = 0; h < 2; h++) {  // lane l has elements 2 (l % 4) and the next of row l / 4
        const int row = o[3] ? l % 4 * 2 + h : l / 4, column = o[3] ? l / 4 : l % 4 * 2 + h;
        u16* there = (u16*)rows[row] + column;
        if (loads) mine[2 * l + h] = *there; else *there = mine[2 * l + h];
      }
  }
}

static void data() {
  memory<u8>("b8"), memory<u8>("u8"), memory<i8>("s8"), memory<u16>("b16"), memory<u16>("u16"), memory<i16>("s16");
  memory<u32>("b32"), memory<u32>("u32"), memory<i32>("s32"), memory<u32>("f32");
  memory<u64>("b64"), memory<u64>("u64"), memory<u64>("s64"), memory<u64>("f64");
  table["ldmatrix"] = matrices<true>;
  table["stmatrix"] = matrices<false>;
  // o = {to, bytes of its register, offset, from, bytes of its register, offset, bytes, register of valid bytes or -1}
  table["cp.async"] = [](Warp& w, const i64* o) {
    each(w.active, [&](int l) {
      Copy c{u32(address(w, o, l)), address(w, o + 3, l), u32(o[6]), o[7] < 0 ? u32(o[6]) : w.at<u32>(o[7])[l]};
      w.block.shared(c.shared, c.bytes);
      if (c.valid > c.bytes) throw Fault(text("cp.async of %u of %u bytes", c.valid, c.bytes));
      if (c.valid) w.block.global(c.global, c.bytes == c.valid ? c.bytes : 1), w.block.owned(c.global, c.valid);
      if (w.block.launch.late_copies) w.copies.open.push_back(c); else copy_now(w, c);
    });
  };
  table["cp.async.commit_group"] = [](Warp& w, const i64*) { w.copies.commit(); };
  table["cp.async.wait_group"] = [](Warp& w, const i64* o) { w.copies.wait(o[0], [&](Copy& c) { copy_now(w, c); }); };
}

// The tensor memory accelerator and mbarriers. o[i] of an address: {register, bytes, offset}

template <bool loads> static void box(Warp& w, const i64* o) {  // o = {shared address, map, mbarrier, rank, coordinates...}
  if (w.active & (w.active - 1)) throw Fault("several lanes start the same copy of a box");
  const int lane = __builtin_ctz(w.active);
  Box b{(const TensorMap*)w.block.parameter(address(w, o + 3, lane), sizeof(TensorMap)), {}, u32(address(w, o, lane)), 0};
  if (loads) b.barrier = address(w, o + 6, lane);
  if (b.map->rank != o[9]) throw Fault(text("a tensor map of rank %u is used with %ld coordinates", b.map->rank, o[9]));
  for (i64 i = 0; i < o[9]; i++) b.start[i] = w.at<i32>(o[10 + i])[lane];
  if (b.shared % 128) throw Fault(text("a box at shared address %#lx, which is not aligned to 128 bytes", b.shared - SHARED));
  if (loads) {
    w.block.mbarrier(b.barrier);
    if (w.block.launch.late_copies) w.block.boxes.push_back(b); else w.block.load(b);
  } else {
    if (w.block.launch.late_copies) w.stores.open.push_back(b); else w.block.store(b);
  }
}

static void synchronisation() {
  table["cp.async.bulk.tensor.load"] = box<true>;
  table["cp.async.bulk.tensor.store"] = box<false>;
  table["cp.async.bulk.commit_group"] = [](Warp& w, const i64*) { w.stores.commit(); };
  table["cp.async.bulk.wait_group"] = [](Warp& w, const i64* o) { w.stores.wait(o[0], [&](Box& b) { w.block.store(b); }); };
  table["fence.proxy.async"] = [](Warp& w, const i64*) { w.block.fenced = w.block.now; };
  table["mbarrier.init"] = [](Warp& w, const i64* o) {  // o = {address, arrivals}
    const u32 at = address(w, o, __builtin_ctz(w.active));
    w.block.shared(at, 8);
    if (o[3] < 1) throw Fault(text("an mbarrier of %ld arrivals", o[3]));
    if (!w.block.mbarriers.emplace(at, Mbarrier{o[3], o[3], 0, 0}).second)
      throw Fault(text("the mbarrier at %#lx is initialised twice", at - SHARED));
  };
  table["mbarrier.inval"] = [](Warp& w, const i64* o) {
    const u32 at = address(w, o, __builtin_ctz(w.active));
    if (const i64 left = w.block.mbarrier(at).bytes) throw Fault(text("the mbarrier at %#lx ends while it expects %ld bytes", at - SHARED, left));
    for (const Warp& other : w.block.warps)
      if (other.state == Warp::AT_MBARRIER && other.waits_for == at) throw Fault(text("the mbarrier at %#lx ends while warp %u waits for it", at - SHARED, other.id));
    w.block.mbarriers.erase(at);
  };
  table["mbarrier.arrive"] = [](Warp& w, const i64* o) {  // o = {address, arrivals, bytes}
    each(w.active, [&](int l) { w.block.arrive(address(w, o, l), o[3], o[4]); });
  };
  table["mbarrier.try_wait.parity"] = [](Warp& w, const i64* o) {  // o = {address, done, parity}
    const u32 at = w.same<u32>(o[0], "the mbarrier that they wait for") + o[2];
    w.wait(at, w.same<u32>(o[4], "the parity that they wait for"));
    *w.at<u32>(o[3]) = ALL;  // a warp that has to wait asks again
  };
  table["bar.sync"] = [](Warp& w, const i64* o) {  // o = {barrier, threads or -1}
    w.together("a barrier");
    w.stand(w.same<u32>(o[0], "a barrier's number"), o[1] < 0 ? w.block.launch.warps * LANES : w.same<u32>(o[1], "a number of threads"), true);
  };
  table["bar.arrive"] = [](Warp& w, const i64* o) {
    w.together("a barrier");
    w.stand(w.same<u32>(o[0], "a barrier's number"), w.same<u32>(o[1], "a number of threads"), false);
  };
}

// Products

// Where element (mn, k) of an operand in shared memory is; mn counts along M or N. PTX: "matrix descriptor".
static u32 element_address(u64 descriptor, int mn, int k, bool mn_is_contiguous) {
  const u32 start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  const int mode = descriptor >> 62, width = mode ? 256 >> mode : 16;  // modes 1, 2, 3: rows of 128, 64, 32 bytes
  const int row = mn_is_contiguous ? k : mn, byte = 2 * (mn_is_contiguous ? mn : k);
  u32 at = start + row / 8 * stride + row % 8 * width + byte / width * leading + byte % width;
  if (!mode && mn_is_contiguous) at = start + byte / 16 * stride + row / 8 * leading + row % 8 * 16 + byte % 16;
  if (mode && !mn_is_contiguous) at = start + row / 8 * stride + row % 8 * width + byte;
  return Block::swizzled(at, mode ? width : 0);
}

constexpr int WIDEST = 256;  // N of a product
using Eight [[gnu::vector_size(32)]] = f32;

// `count` x 16 elements of an operand, as [k][mn].
template <class Half> static void operand(Warp& w, u64 descriptor, int first, int count, bool mn_is_contiguous, f32 (*to)[WIDEST + 8]) {
  if (descriptor >> 49 & 7 || descriptor >> 14 & 3 || descriptor >> 30 & 3) throw Fault("a matrix descriptor with unknown fields");
  for (int i = 0; i < count * 16; i += 8) {  // 8 elements are always together
    const int mn = mn_is_contiguous ? i % count : i / 16, k = mn_is_contiguous ? i / count : i % 16;
    u16 row[8];
    memcpy(row, w.block.shared_async(element_address(descriptor, first + mn, k, mn_is_contiguous), 16), 16);
    f32* at = &to[k][mn];
    for (int j = 0; j < 8; j++) at[mn_is_contiguous ? j : j * (WIDEST + 8)] = Half::widen(row[j]);
  }
}

// o = {N, A is in registers, A is transposed, B is transposed, accumulate, B, A or its four registers, D...}
template <class Half> static void multiply(Warp& w, const Product& p) {
  const i64* o = p.operands;
  const int n = o[0], first = w.id % 4 * 16;  // rows of D that this warp of four has
  alignas(32) f32 a[16][WIDEST + 8], b[16][WIDEST + 8];  // [k][row], [k][column]
  if (o[1]) {
    for (int l = 0; l < LANES; l++)
      for (int r = 0; r < 4; r++)
        for (int h = 0; h < 2; h++) a[l % 4 * 2 + 8 * (r / 2) + h][l / 4 + 8 * (r % 2)] = Half::widen(w.at<u16>(o[6 + r])[2 * l + h]);
  } else {
    operand<Half>(w, p.a, first, 16, o[2], a);
  }
  operand<Half>(w, p.b, 0, n, o[3], b);
  const i64* d = o + (o[1] ? 10 : 7);
  for (int j = 0; j < n; j += 8)
    for (int half = 0; half < 2; half++) {
      Eight sums[8] = {};  // of 8 rows and 8 columns; products of 16-bit numbers are exact
      for (int k = 0; k < 16; k++)
        for (int i = 0; i < 8; i++) sums[i] += a[k][8 * half + i] * *(const Eight*)&b[k][j];
      for (int c = 0; c < 2; c++) {
        f32* x = w.at<f32>(d[j / 2 + half * 2 + c]);  // lane 4 i + m has columns 2 m and the next of row i
        for (int l = 0; l < LANES; l++) x[l] = (p.accumulate ? x[l] : 0.f) + sums[l / 4][l % 4 * 2 + c];
      }
    }
}

template <class Half> static void issue(Warp& w, const i64* o) {
  w.together("an instruction of whole warps");
  Product p{multiply<Half>, o, 0, w.same<u64>(o[5], "a matrix descriptor"), bool(*w.at<u32>(o[4]) & 1)};
  if (!o[1]) p.a = w.same<u64>(o[6], "a matrix descriptor");
  if (w.block.launch.late_products) w.products.open.push_back(p); else p.multiply(w, p);
}

// mma.m16n8k16. o = {4 of D, 4 of A, 2 of B, 4 of C}
template <class Half> static void multiply_now(Warp& w, const i64* o) {
  w.together("an instruction of whole warps");
  f32 a[16][16], b[16][8], c[16][8];
  for (int l = 0; l < LANES; l++) {
    for (int h = 0; h < 2; h++) {
      for (int r = 0; r < 4; r++) a[l / 4 + 8 * (r % 2)][l % 4 * 2 + 8 * (r / 2) + h] = Half::widen(w.at<u16>(o[4 + r])[2 * l + h]);
      for (int r = 0; r < 2; r++) b[l % 4 * 2 + 8 * r + h][l / 4] = Half::widen(w.at<u16>(o[8 + r])[2 * l + h]);
    }
    for (int r = 0; r < 4; r++) c[l / 4 + 8 * (r / 2)][l % 4 * 2 + r % 2] = w.at<f32>(o[10 + r])[l];
  }
  for (int i = 0; i < 16; i++) {
    f32 sum[8] = {};
    for (int k = 0; k < 16; k++)
      for (int j = 0; j < 8; j++) sum[j] = __builtin_fmaf(a[i][k], b[k][j], sum[j]);
    for (int j = 0; j < 8; j++) c[i][j] += sum[j];
  }
  for (int l = 0; l < LANES; l++)
    for (int r = 0; r < 4; r++) w.at<f32>(o[r])[l] = c[l / 4 + 8 * (r / 2)][l % 4 * 2 + r % 2];
}

static void products() {
  table["mma.m16n8k16.row.col.f32.bf16.bf16.f32"] = multiply_now<Bf16>;
  table["mma.m16n8k16.row.col.f32.f16.f16.f32"] = multiply_now<F16>;
  table["wgmma.mma_async.k16.f32.bf16.bf16"] = issue<Bf16>;
  table["wgmma.mma_async.k16.f32.f16.f16"] = issue<F16>;
  table["wgmma.commit_group"] = [](Warp& w, const i64*) { w.products.commit(); };
  table["wgmma.wait_group"] = [](Warp& w, const i64* o) {
    w.products.wait(o[0], [&](Product& p) { p.multiply(w, p); });
  };
}

// Control

static void control() {
  table["bra"] = [](Warp& w, const i64* o) { w.together("a branch"); w.next = o[0]; };
  table["brx.idx"] = [](Warp& w, const i64* o) {  // o = {index, targets, instructions...}
    const u32 index = w.same<u32>(o[0], "the index of a branch");
    if (index >= o[1]) throw Fault(text("entry %u of a table of %ld branches", index, o[1]));
    w.next = o[2 + index];
  };
  table["ret"] = [](Warp& w, const i64*) { w.together("a return"); w.state = Warp::ENDED; };
  table["trap"] = [](Warp&, const i64*) { throw Fault("trap"); };
  table["nop"] = [](Warp&, const i64*) {};
  table["mov.special"] = [](Warp& w, const i64* o) {  // o = {register, which}
    const Block& b = w.block;
    const i64 *grid = b.launch.grid, threads = b.launch.warps * LANES;
    const i64 values[] = {w.id * LANES, 0, 0, threads, 1, 1, b.index[0], b.index[1], b.index[2], grid[0], grid[1], grid[2], 0, w.id};
    const bool counts_lanes = o[1] == 0 || o[1] == 12;  // %tid.x, %laneid
    each(w.active, [&](int l) { w.at<u32>(o[0])[l] = values[o[1]] + (counts_lanes ? l : 0); });
  };
}

static std::vector<string> names;
static std::vector<Handler> handlers;

extern "C" {

// The number of the instruction of this name, or -1.
int find(const char* name) {
  if (names.empty()) {
    integers<i16>("s16"), integers<i32>("s32"), integers<i64>("s64");
    integers<u16>("u16"), integers<u32>("u32"), integers<u64>("u64");
    wide_integers<i16, i32>("s16"), wide_integers<i32, i64>("s32");
    wide_integers<u16, u32>("u16"), wide_integers<u32, u64>("u32");
    bits<u16>("b16"), bits<u32>("b32"), bits<u64>("b64");
    comparisons<i16>("s16"), comparisons<i32>("s32"), comparisons<i64>("s64"), comparisons<f32>("f32");
    comparisons<u16>("u16"), comparisons<u32>("u32"), comparisons<u64>("u64");
    comparisons<u16>("b16"), comparisons<u32>("b32"), comparisons<u64>("b64");
    unordered_comparisons(), predicates(), floats(), fields(), conversions(), between_lanes();
    data(), synchronisation(), products(), control();
    for (auto& [key, handler] : table) names.push_back(key), handlers.push_back(handler);
  }
  const auto found = std::find(names.begin(), names.end(), name);
  return found == names.end() ? -1 : found - names.begin();
}

int instruction_count() { return find("nop"), names.size(); }

const char* instruction_name(int number) { return names[number].c_str(); }

// Run all blocks of a launch, one after another: 0, or 1 with a message.
int run(Launch* launch) {
  try {
    for (u32 z = 0; z < launch->grid[2]; z++)
      for (u32 y = 0; y < launch->grid[1]; y++)
        for (u32 x = 0; x < launch->grid[0]; x++) Block(*launch, x, y, z).run(handlers.data());
    return 0;
  } catch (const std::exception& error) {
    snprintf(launch->message, 1024, "%s", error.what());
    return 1;
  }
}
}
