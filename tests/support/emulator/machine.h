// What a block of threads is made of while PTX runs on a CPU: registers, memory, barriers, and work that is under way.
//
// A warp runs until it has to wait; its 32 lanes run in step. Asynchronous work is done either when it is issued or as
// late as something waits for it: code that is right in both orders needs no luck. Every rule that is checked here ends
// the launch with a Fault.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

using u8 = uint8_t; using u16 = uint16_t; using u32 = uint32_t; using u64 = uint64_t;
using i8 = int8_t; using i16 = int16_t; using i32 = int32_t; using i64 = int64_t;
using f32 = float;

constexpr int LANES = 32;
constexpr u32 ALL = 0xffffffff;
constexpr u64 SHARED = 1024;            // where shared memory begins: a null pointer lies outside
constexpr u64 PARAMETERS = u64(1) << 56; // where parameters are among all addresses: outside of what a process has

struct Fault : std::runtime_error { using runtime_error::runtime_error; };

[[gnu::format(printf, 1, 2)]] inline std::string text(const char* format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  return line;
}

// What Python hands over; `core.py` holds the same structures.
struct Instruction { i32 handler, guard, negated, operands; };  // guard: a predicate register or -1
struct Constant { i64 offset, bytes; u64 value; };               // a register that never changes
struct Range { u64 begin, end; };
struct TensorMap {  // stands in the 128 bytes of a CUtensorMap; the innermost axis first, strides in bytes
  u64 base, size[5], stride[5];
  u32 box[5], rank, element, swizzle;
};
static_assert(sizeof(TensorMap) <= 128);
struct Launch {
  const Instruction* code; const i64* operands; const Constant* constants; const Range* ranges; u8* parameters;
  u64* counts;  // of warp instructions, by handler
  char* message;
  i64 length, constant_count, range_count, parameter_bytes, register_bytes, shared_bytes, warps, limit;
  i64 grid[3];
  i64 late_copies, late_products;
  i64 fault_at;  // the instruction of a fault
};

struct Warp;
using Handler = void (*)(Warp&, const i64*);

// Work that a warp commits in groups, of which the oldest end first.
template <class Work> struct Groups {
  std::vector<Work> open;
  std::deque<std::vector<Work>> committed;
  void commit() { committed.push_back(std::move(open)); open.clear(); }
  template <class Finish> void wait(size_t left, Finish finish) {
    for (; committed.size() > left; committed.pop_front()) for (Work& work : committed.front()) finish(work);
  }
  bool idle() const {
    for (const auto& group : committed) if (!group.empty()) return false;
    return open.empty();
  }
};

struct Mbarrier { i64 count, pending, bytes; u32 phase; };
struct Box { const TensorMap* map; i64 start[5]; u32 shared, barrier; };   // a box on its way, `barrier` 0 for a store
struct Copy { u32 shared; u64 global; u32 bytes, valid; };                   // cp.async of one lane
struct Product { void (*multiply)(Warp&, const Product&); const i64* operands; u64 a, b; bool accumulate; };  // wgmma

struct Block {
  const Launch& launch;
  const u32 index[3];
  std::vector<u8> memory;          // shared memory, filled with NaN
  std::vector<u64> written;        // when a thread last wrote each 16 bytes of it
  u64 now = 1, fenced = 0;         // clock of such writes; those up to `fenced` are visible to the async proxy
  std::map<u32, Mbarrier> mbarriers;
  std::deque<Box> boxes;           // loads under way
  struct Named { u32 threads = 0, expected = 0; };
  std::map<u32, Named> named;
  std::deque<Warp> warps;
  i64 steps = 0;

  Block(const Launch& launch, u32 x, u32 y, u32 z)
      : launch(launch), index{x, y, z}, memory(launch.shared_bytes, 0xff), written(launch.shared_bytes / 16 + 1) {}

  u8* global(u64 address, u64 bytes) const {
    if (address % bytes) throw Fault(text("global address %#lx is not aligned to %lu bytes", address, bytes));
    return owned(address, bytes);
  }

  u8* owned(u64 address, u64 bytes) const {
    for (i64 i = 0; i < launch.range_count; i++)
      if (address >= launch.ranges[i].begin && address + bytes <= launch.ranges[i].end) return (u8*)address;
    std::string where = "no tensor is near";
    for (i64 i = 0; i < launch.range_count; i++) {
      const Range& r = launch.ranges[i];
      if (address >= r.begin && address < r.end + (1 << 20))
        where = text("byte %lu of a storage of %lu", address - r.begin, r.end - r.begin);
      else if (address < r.begin && address + (1 << 20) > r.begin)
        where = text("%lu bytes before a storage", r.begin - address);
    }
    throw Fault(text("%lu bytes at global address %#lx are outside all tensors: %s", bytes, address, where.c_str()));
  }

  u8* shared(u64 address, u64 bytes) {
    if (address % bytes) throw Fault(text("shared address %#lx is not aligned to %lu bytes", address, bytes));
    if (address < SHARED || address + bytes > SHARED + memory.size())
      throw Fault(text("%lu bytes at shared address %#lx are outside the block's %zu", bytes, address - SHARED,
                       memory.size()));
    return &memory[address - SHARED];
  }

  // By an address in the space of parameters, or a generic one, which cvta.param makes.
  u8* parameter(u64 address, u64 bytes) const {
    const u64 offset = address < PARAMETERS ? address : address - PARAMETERS;
    if (offset + bytes > u64(launch.parameter_bytes))
      throw Fault(text("%lu bytes at address %#lx are no parameter", bytes, address));
    return launch.parameters + offset;
  }

  // The generic proxy (st.shared, stmatrix) has written; the async proxy (TMA, wgmma) must not read it before a fence.
  // cp.async belongs to the former too, but Triton before 3.7 leaves the fence out there, and has run so for years.
  void wrote(u64 address, u64 bytes) {
    for (u64 i = (address - SHARED) / 16; i <= (address - SHARED + bytes - 1) / 16; i++) written[i] = now;
    now++;
  }

  const u8* shared_async(u64 address, u64 bytes) {
    const u8* found = shared(address, bytes);
    if (written[(address - SHARED) / 16] > fenced)
      throw Fault(text("shared address %#lx is read by the async proxy without fence.proxy.async after it was written",
                       address - SHARED));
    return found;
  }

  Mbarrier& mbarrier(u32 address) {
    auto found = mbarriers.find(address);
    if (found == mbarriers.end()) throw Fault(text("no mbarrier is at shared address %#lx", address - SHARED));
    return found->second;
  }

  void arrive(u32 address, i64 arrivals, i64 expected_bytes) {
    Mbarrier& b = mbarrier(address);
    b.pending -= arrivals;
    b.bytes += expected_bytes;
    if (b.pending < 0)
      throw Fault(text("more than %ld arrivals in one phase of the mbarrier at %#lx", b.count, address - SHARED));
    turn(b);
  }

  static void turn(Mbarrier& b) {
    if (b.pending == 0 && b.bytes == 0) b.phase ^= 1, b.pending = b.count;
  }

  // Whether the phase of this parity is over, after all copies that a wait for it brings to their end.
  bool over(u32 address, u32 parity) {
    const Mbarrier& b = mbarrier(address);
    for (auto box = boxes.begin(); box != boxes.end() && b.phase == (parity & 1);) {
      if (box->barrier != address) { ++box; continue; }
      Box found = *box;
      box = boxes.erase(box);
      load(found);
    }
    return b.phase != (parity & 1);
  }

  // Rows of a box: where each lies in shared memory, in the tensor, and which of its bytes are inside.
  template <class Move> void rows(const Box& box, Move move) {
    const TensorMap& map = *box.map;
    u32 extent[5] = {1, 1, 1, 1, 1};
    for (u32 i = 0; i < map.rank; i++) extent[i] = map.box[i];
    const i64 first = std::max<i64>(0, -box.start[0]), last = std::min<i64>(extent[0], i64(map.size[0]) - box.start[0]);
    u32 at = box.shared;
    for (u32 e = 0; e < extent[4]; e++) for (u32 d = 0; d < extent[3]; d++)
      for (u32 c = 0; c < extent[2]; c++) for (u32 b = 0; b < extent[1]; b++) {
        const u32 place[5] = {0, b, c, d, e};
        u64 global = map.base + box.start[0] * map.element;
        bool inside = first < last;
        for (u32 i = 1; i < map.rank; i++) {
          const i64 p = box.start[i] + place[i];
          inside &= p >= 0 && p < i64(map.size[i]);
          global += p * map.stride[i];
        }
        move(at, global, inside ? first * map.element : 0, inside ? last * map.element : 0);
        at += extent[0] * map.element;
      }
  }

  // Rows of `swizzle` bytes, of which lines of 128 exchange pieces of 16.
  static u32 swizzled(u32 address, u32 swizzle) {
    return swizzle ? address ^ ((address >> 7 & (swizzle / 16 - 1)) << 4) : address;
  }

  void load(const Box& box) {
    const u32 bytes = box.map->box[0] * box.map->element;
    i64 total = 0;
    rows(box, [&](u32 at, u64 global, i64 first, i64 last) {
      u8 row[1024] = {};  // 256 elements of 4 bytes at most
      if (first < last) memcpy(row + first, owned(global + first, last - first), last - first);
      for (u32 i = 0; i < bytes; i += 16) memcpy(shared(swizzled(at + i, box.map->swizzle), 16), row + i, 16);
      total += bytes;
    });
    Mbarrier& b = mbarrier(box.barrier);
    b.bytes -= total;
    if (b.bytes < 0)
      throw Fault(text("%ld bytes more than expected arrive on the mbarrier at %#lx", -b.bytes, box.barrier - SHARED));
    turn(b);
  }

  void store(const Box& box) {
    const u32 bytes = box.map->box[0] * box.map->element;
    rows(box, [&](u32 at, u64 global, i64 first, i64 last) {
      u8 row[1024];
      for (u32 i = 0; i < bytes; i += 16) memcpy(row + i, shared_async(swizzled(at + i, box.map->swizzle), 16), 16);
      if (first < last) memcpy(owned(global + first, last - first), row + first, last - first);
    });
  }

  void run(const Handler* handlers);
  std::string standstill();
};

struct Warp {
  enum State { RUNS, AT_BARRIER, AT_MBARRIER, ENDED };
  Block& block;
  const u32 id;
  State state = RUNS;
  i64 pc = 0, next = 0;
  u32 active = ALL;                  // lanes that the guard lets through
  u32 waits_for = 0, parity = 0;     // a named barrier, or an mbarrier and its phase
  std::vector<u8> registers;
  Groups<Copy> copies;
  Groups<Product> products;
  Groups<Box> stores;

  Warp(Block& block, u32 id) : block(block), id(id), registers(block.launch.register_bytes, 0xff) {
    for (i64 i = 0; i < block.launch.constant_count; i++) {
      const Constant& c = block.launch.constants[i];
      for (int l = 0; l < (c.bytes ? LANES : 1); l++)  // a predicate is one mask
        memcpy(&registers[c.offset + l * c.bytes], &c.value, c.bytes ? c.bytes : 4);
    }
  }

  template <class T> T* at(i64 offset) { return (T*)&registers[offset]; }

  // The value that all active lanes hold.
  template <class T> T same(i64 offset, const char* what) {
    const T* x = at<T>(offset);
    const int first = __builtin_ctz(active);
    for (int l = first; l < LANES; l++)
      if (active >> l & 1 && x[l] != x[first]) throw Fault(text("the lanes of a warp differ in %s", what));
    return x[first];
  }

  void together(const char* what) const {
    if (active != ALL) throw Fault(text("the lanes of a warp part at %s: %#x alone take it", what, active));
  }

  void wait(u32 address, u32 wanted) {
    if (block.over(address, wanted)) return;
    state = AT_MBARRIER, waits_for = address, parity = wanted;
    next = pc;  // asked again when it goes on
  }

  void stand(u32 barrier, u32 threads, bool stays) {
    Block::Named& b = block.named[barrier];
    if (b.threads && b.expected != threads)
      throw Fault(text("barrier %u is used for %u and for %u threads", barrier, b.expected, threads));
    b.expected = threads;
    b.threads += LANES;
    if (stays) state = AT_BARRIER, waits_for = barrier;
    if (b.threads < threads) return;
    b.threads = 0;
    for (Warp& w : block.warps) if (w.state == AT_BARRIER && w.waits_for == barrier) w.state = RUNS;
  }

  bool ready() { return state == RUNS || (state == AT_MBARRIER && block.over(waits_for, parity)); }

  void run(const Handler* handlers) {
    const Launch& launch = block.launch;
    for (state = RUNS; state == RUNS; pc = next) {
      if (pc >= launch.length) throw Fault("the code ends without a return");
      const Instruction& instruction = launch.code[pc];
      next = pc + 1;
      active = instruction.guard < 0 ? ALL : *at<u32>(instruction.guard) ^ (instruction.negated ? ALL : 0);
      launch.counts[instruction.handler]++;
      if (active) handlers[instruction.handler](*this, launch.operands + instruction.operands);
      if (++block.steps > launch.limit) throw Fault(text("no end after %ld instructions", block.steps));
    }
  }
};

inline void Block::run(const Handler* handlers) {
  for (i64 i = 0; i < launch.warps; i++) warps.emplace_back(*this, u32(i));
  const Warp* current = nullptr;
  try {
    for (bool alive = true, moved = true; alive;) {
      if (!moved) {
        for (const Warp& w : warps) if (w.state != Warp::ENDED) { current = &w; break; }
        throw Fault("deadlock: " + standstill());
      }
      alive = moved = false;
      for (Warp& w : warps) {
        current = &w;
        if (w.state != Warp::ENDED && w.ready()) w.run(handlers), moved = true;
        alive |= w.state != Warp::ENDED;
      }
    }
    current = nullptr;
    if (!boxes.empty()) throw Fault("the block ends while a load is under way");
    for (const Warp& w : warps)
      if (!w.copies.idle() || !w.products.idle() || !w.stores.idle())
        throw Fault(text("warp %u ends with asynchronous work that nothing has waited for", w.id));
    for (const auto& [address, b] : mbarriers)
      if (b.bytes)
        throw Fault(text("the block ends while the mbarrier at %#lx expects %ld bytes", address - SHARED, b.bytes));
  } catch (Fault& fault) {
    // A warp at a barrier has gone past its instruction.
    const_cast<Launch&>(launch).fault_at = current ? current->pc - (current->state == Warp::AT_BARRIER) : -1;
    const std::string who = current ? text(", warp %u", current->id) : "";
    throw Fault(text("block (%u, %u, %u)%s: %s", index[0], index[1], index[2], who.c_str(), fault.what()));
  }
}

inline std::string Block::standstill() {
  std::map<std::string, std::string> warps_by_reason;
  for (const Warp& w : warps) {
    std::string reason;
    if (w.state == Warp::ENDED) continue;
    if (w.state == Warp::AT_BARRIER) {
      const Named& b = named[w.waits_for];
      reason = text("at barrier %u with %u of %u threads", w.waits_for, b.threads, b.expected);
    } else {
      const Mbarrier& b = mbarriers[w.waits_for];
      reason = text("for parity %u of the mbarrier at %#lx, which lacks %ld of %ld arrivals and %ld bytes",
                    w.parity & 1, w.waits_for - SHARED, b.pending, b.count, b.bytes);
    }
    warps_by_reason[reason] += text(" %u", w.id);
  }
  std::string found;
  for (const auto& [reason, those] : warps_by_reason)
    found += (found.empty() ? "warps" : "; warps") + those + " wait " + reason;
  return found;
}
