// The stages of the CPU backend on plain threads, for ThreadSanitizer: torch's own pool is libgomp, which is not
// instrumented, so its barriers look like races. Here the same torch-free ranges run on std::thread, split more finely than
// torch would.
//
//   threads        every stage, twice: answers must agree with one thread's
//   threads race   a planted fault: two threads prepare the same rows, which must be reported
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/sampler.h"

namespace {

using namespace bdkernels;

constexpr int64_t kUsers = 70, kItems = 5003, kFactors = 5, kSeen = 40,
                  kCounted = 3000;  // more than one block of users, chunk and tile

// Ranges of `grain` of [0, n) dealt to the threads in turn; returns when all are done.
void parallel(int threads, int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& work) {
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      for (int64_t i = t * grain; i < n; i += threads * grain) work(i, std::min(n, i + grain));
    });
  }
  for (std::thread& thread : pool) thread.join();
}

struct Data {
  std::vector<float> users, items;
  std::vector<int64_t> ids, user_ids, indptr{0}, seen_ids;

  explicit Data(int64_t c) : users(kUsers * kFactors), items(kItems * kFactors), ids(kUsers * c), user_ids(kUsers) {
    std::mt19937 random(7);
    for (float& x : users) x = static_cast<float>(random() % 33) / 8 - 2;
    for (float& x : items) x = static_cast<float>(random() % 33) / 8 - 2;
    for (int64_t& id : ids) id = static_cast<int64_t>(random() % kItems);
    for (int64_t row = 0; row < kUsers; ++row) {
      user_ids[row] = row;
      for (int64_t j = 0; j < kSeen; ++j) seen_ids.push_back(j * 100 + row);
      indptr.push_back(static_cast<int64_t>(seen_ids.size()));
    }
  }
};

struct Answer {
  std::vector<float> scores, block;
  std::vector<int64_t> counts, proposals, best, drawn[4];  // over the whole catalog, and over a subset
  std::vector<char> accepted;
  bool operator==(const Answer&) const = default;
};

Answer answer(int threads, int64_t c) {
  const Data data(c);
  const Users users{data.users.data(), kUsers};
  const Items items{data.items.data(), nullptr, Dtype::kFloat32, kItems, kFactors, kFactors};
  const Seen seen{data.indptr.data(), data.seen_ids.data()};
  Answer out{std::vector<float>(kUsers * c),   std::vector<float>(kUsers * kItems), std::vector<int64_t>(kUsers * c),
             std::vector<int64_t>(kUsers * c), std::vector<int64_t>(kUsers * c),    {},
             std::vector<char>(kUsers * c)};
  parallel(threads, kUsers, 3,
           [&](int64_t a, int64_t b) { cpu::score(users, items, data.ids.data(), c, a, b, out.scores.data()); });
  parallel(threads, kItems, 300, [&](int64_t a, int64_t b) { cpu::score_block(users, items, a, b, out.block.data()); });
  cpu::CountAbove work({users, items, nullptr}, kUsers, {out.scores.data(), data.ids.data(), c, 0, kItems}, seen, 64,
                       out.counts.data());
  parallel(threads, work.tasks(), 1, [&](int64_t a, int64_t b) { work.run(a, b); });
  cpu::TopK best(users, items, c, seen, threads, 64);
  parallel(threads, best.tasks(), 1, [&](int64_t a, int64_t b) { best.run(a, b); });
  std::vector<float> top(kUsers * c);
  parallel(threads, kUsers, 3, [&](int64_t a, int64_t b) { best.finish(a, b, top.data(), out.best.data()); });
  parallel(threads, kUsers, 3, [&](int64_t a, int64_t b) {
    cpu::propose(1, 2, data.user_ids.data(), 0, c, kItems, seen, a, b, out.proposals.data());
  });
  const std::vector<int64_t> candidates(kUsers, kItems - kSeen);
  bool* accepted = reinterpret_cast<bool*>(out.accepted.data());
  parallel(threads, kUsers, 3, [&](int64_t a, int64_t b) {
    cpu::accept(1, 2, data.user_ids.data(), 0, c, out.counts.data(), out.proposals.data(), candidates.data(),
                {Kind::kExp, 2.5, false}, true, a, b, accepted);
  });
  for (auto& drawn : out.drawn) drawn.assign(kUsers * c, -1);
  const Items fewer{data.items.data() + 1, nullptr, Dtype::kFloat32, kItems, kFactors - 1, kFactors};
  const std::vector<float> student(data.users.begin(), data.users.begin() + kUsers * (kFactors - 1));
  std::vector<int64_t> counted(kCounted), indptr{0}, seen_counted;  // the first items, and who has seen them
  std::iota(counted.begin(), counted.end(), 0);
  for (int64_t row = 0; row < kUsers; ++row) {
    for (int64_t e = seen.begin(row); e < seen.end(row); ++e) {
      if (seen.indices[e] < kCounted) seen_counted.push_back(seen.indices[e]);
    }
    indptr.push_back(static_cast<int64_t>(seen_counted.size()));
  }
  cpu::Subset some{counted.data(), {items, fewer}, {indptr.data(), seen_counted.data()}};
  for (Items& each : some.items) each.n = kCounted;
  for (int first : {0, 2}) {
    std::vector<int64_t> hits[2] = {std::vector<int64_t>(kUsers, 0), std::vector<int64_t>(kUsers, 0)};
    const auto direction = [&](int i) {  // of the teacher nearly nothing is accepted: full rows
      const Weight weight{Kind::kExp, i ? 500.0 : 2.5, false};
      return cpu::Direction{true, weight, out.drawn[first + i].data(), hits[i].data()};
    };
    const cpu::Sampler sampler{{{users, items}, {{student.data(), kUsers}, fewer}},
                               {direction(0), direction(1)},
                               seen,
                               data.user_ids.data(),
                               c,
                               1,
                               2,
                               1024,
                               16,
                               4096,
                               64,
                               [&](int64_t n, int64_t grain, const cpu::Body& body) { parallel(threads, n, grain, body); },
                               first ? some : cpu::Subset{}};
    sampler.run();
  }
  return out;
}

void race() {
  const Data data(8);
  const std::vector<float> thresholds(kUsers * 8);
  cpu::ThresholdBlock block({thresholds.data(), data.ids.data(), 8, 0, kItems}, kUsers);
  parallel(2, 2, 1, [&](int64_t, int64_t) { block.begin(0, kUsers); });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !std::strcmp(argv[1], "race")) {
    race();
    return 0;
  }
  for (const int64_t c : {3, 33}) {  // few thresholds, and many
    if (answer(4, c) != answer(1, c)) {
      std::printf("four threads and one disagree with %d thresholds\n", static_cast<int>(c));
      return 1;
    }
  }
}
