// What each PTX instruction does to a warp. `forms.py` writes the operands; names are those of PTX, without what makes
// no difference here (rounding to nearest, cache hints, scopes).
#include <algorithm>

#include "arithmetic.h"

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
      const u32 bytes = o[6];
      Copy c{u32(address(w, o, l)), address(w, o + 3, l), bytes, o[7] < 0 ? bytes : w.at<u32>(o[7])[l]};
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

// o = {shared address, map, mbarrier, rank, coordinates...}
template <bool loads> static void box(Warp& w, const i64* o) {
  if (w.active & (w.active - 1)) throw Fault("several lanes start the same copy of a box");
  const int lane = __builtin_ctz(w.active);
  const auto* map = (const TensorMap*)w.block.parameter(address(w, o + 3, lane), sizeof(TensorMap));
  Box b{map, {}, u32(address(w, o, lane)), 0};
  if (loads) b.barrier = address(w, o + 6, lane);
  if (map->rank != o[9]) throw Fault(text("a tensor map of rank %u is used with %ld coordinates", map->rank, o[9]));
  for (i64 i = 0; i < o[9]; i++) b.start[i] = w.at<i32>(o[10 + i])[lane];
  if (b.shared % 128)
    throw Fault(text("a box at shared address %#lx, which is not aligned to 128 bytes", b.shared - SHARED));
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
  table["cp.async.bulk.wait_group"] = [](Warp& w, const i64* o) {
    w.stores.wait(o[0], [&](Box& b) { w.block.store(b); });
  };
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
    if (const i64 left = w.block.mbarrier(at).bytes)
      throw Fault(text("the mbarrier at %#lx ends while it expects %ld bytes", at - SHARED, left));
    for (const Warp& other : w.block.warps)
      if (other.state == Warp::AT_MBARRIER && other.waits_for == at)
        throw Fault(text("the mbarrier at %#lx ends while warp %u waits for it", at - SHARED, other.id));
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
    const u32 all = w.block.launch.warps * LANES, threads = o[1] < 0 ? all : w.same<u32>(o[1], "a number of threads");
    w.stand(w.same<u32>(o[0], "a barrier's number"), threads, true);
  };
  table["bar.arrive"] = [](Warp& w, const i64* o) {
    w.together("a barrier");
    w.stand(w.same<u32>(o[0], "a barrier's number"), w.same<u32>(o[1], "a number of threads"), false);
  };
}

// Products

// Where element (mn, k) of an operand in shared memory is; mn counts along M or N. PTX: "matrix descriptor".
static u32 element_address(u64 descriptor, int mn, int k, bool mn_is_contiguous) {
  const auto field = [&](int bit) -> u32 { return (descriptor >> bit & 0x3fff) << 4; };
  const u32 start = field(0), leading = field(16), stride = field(32);
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
template <class Half>
static void operand(Warp& w, u64 descriptor, int first, int count, bool mn_is_contiguous, f32 (*to)[WIDEST + 8]) {
  if (descriptor >> 49 & 7 || descriptor >> 14 & 3 || descriptor >> 30 & 3)
    throw Fault("a matrix descriptor with unknown fields");
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
    for (int r = 0; r < 4; r++) {
      const u16* pairs = w.at<u16>(o[6 + r]);
      for (int i = 0; i < 64; i++) a[i % 8 + 8 * (r / 2)][i / 8 + 8 * (r % 2)] = Half::widen(pairs[i]);
    }
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
  for (int i = 0; i < 64; i++) {  // halves of 32 lanes
    for (int r = 0; r < 4; r++) a[i / 8 + 8 * (r % 2)][i % 8 + 8 * (r / 2)] = Half::widen(w.at<u16>(o[4 + r])[i]);
    for (int r = 0; r < 2; r++) b[i % 8 + 8 * r][i / 8] = Half::widen(w.at<u16>(o[8 + r])[i]);
  }
  for (int l = 0; l < LANES; l++)
    for (int r = 0; r < 4; r++) c[l / 4 + 8 * (r / 2)][l % 4 * 2 + r % 2] = w.at<f32>(o[10 + r])[l];
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
    const i64 values[] = {w.id * LANES, 0, 0, threads, 1, 1, b.index[0], b.index[1], b.index[2],
                          grid[0], grid[1], grid[2], 0, w.id};
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
    registers_alone(), between_lanes(), data(), synchronisation(), products(), control();
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
