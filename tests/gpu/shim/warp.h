// Warp collectives: every lane of the mask has to come, to the same one, before any of them goes on.
#pragma once
#include <bit>

#include "block.h"

namespace cusim {

struct Met {
  const uint64_t* values;
  int lane;
};

// `orders`: whether what the lanes did before is done for all after.
CUSIM_UNWATCHED inline Met meet(unsigned mask, uint64_t value, const char* what, Place at, bool orders = false) {
  Thread* me = sim.current;
  const unsigned lane = me->id % 32, first = me->id / 32 * 32, lanes = std::min(32u, sim.n - first);
  if (!(mask >> lane & 1)) fail("a warp collective by a lane that is not in its mask", at);
  if (lanes < 32 && mask >> lanes) fail("the mask of a warp collective names lanes beyond the block", at);
  Warp& warp = sim.warps[me->id / 32];
  Meeting* m = nullptr;
  for (int i = 0; i < warp.n; ++i) {
    if (warp.meetings[i].mask == mask) m = &warp.meetings[i];
  }
  if (!m) {
    if (warp.n == kMeetings) fail("more than 8 different masks in one warp", at);
    m = &warp.meetings[warp.n++];
    m->mask = mask;
    m->arrived = 0;
  }
  if (m->arrived && (m->at.line != at.line || m->what != what)) fail("lanes of one mask meet at different collectives", at);
  m->what = what;
  m->at = at;
  uint64_t* values = m->values[m->generation % 2];
  values[lane] = value;
  [[maybe_unused]] char* const fence = &m->fences[m->generation % 2];
  CUSIM_THREAD(if (orders) __tsan_release(fence);)
  m->arrived |= 1u << lane;
  if (m->arrived == mask) {
    m->arrived = 0;
    m->generation++;
    for (unsigned l = 0; l < lanes; ++l) {
      Thread& t = sim.threads[first + l];
      if (t.state == State::kAtCollective && t.waits_for == m) t.state = State::kReady;
    }
  } else {
    me->state = State::kAtCollective;
    me->waits_for = m;
    me->at = at;
    me->coroutine.leave(false);
  }
  CUSIM_THREAD(if (orders) __tsan_acquire(fence);)
  (void)orders;
  return {values, static_cast<int>(lane)};
}

template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T unpack(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// The value of the lane that `source` names; a lane's own if that lies outside of its group of `width`.
template <class T, class Source>
T shuffle(unsigned mask, T value, int width, Source source, const char* what, Place at) {
  const Met met = meet(mask, pack(value), what, at);
  const int base = met.lane & ~(width - 1), from = source(met.lane, base);
  if (from < base || from >= base + width) return value;
  if (!(mask >> from & 1)) fail("a shuffle reads a lane outside of the mask", at);
  return unpack<T>(met.values[from]);
}

template <class T, class Combine>
T reduce(unsigned mask, T value, Combine combine, const char* what, Place at) {
  const Met met = meet(mask, pack(value), what, at);
  int lane = std::countr_zero(mask);
  T all = unpack<T>(met.values[lane]);
  while (++lane < 32) {
    if (mask >> lane & 1) all = combine(all, unpack<T>(met.values[lane]));
  }
  return all;
}

inline void sync_warp(unsigned mask, Place at) { meet(mask, 0, "syncwarp", at, true); }

}  // namespace cusim
