// What the host and the types of csrc/cuda say about their launches, for shapes.py. Each line of input is a question, and of
// output an answer, all integers:
//   tile USERS ITEMS          -> users and items of a thread, floats from one row of a stage to the next, levels of a
//   search;
//                                then of each of 256 threads its users and its items
//   split ITEMS TILE OTHERS PLACES -> items of a block, ranges
//   topk USERS ITEMS K PLACES -> keys in a list; then of each part of the catalog: first and last item, ranges
#include <iostream>
#include <string>

#include "../../../csrc/cuda/histogram.h"
#include "../../../csrc/cuda/topk.cu"

namespace bdkernels::cuda {
namespace {

template <int kUsers, int kItems>
void print_tile(int64_t users, int64_t items) {
  if (users != kUsers || items != kItems) return;
  using Tile = Fma<float, kUsers, kItems>;
  std::cout << Tile::kThreadUsers << ' ' << Tile::kThreadItems << ' ' << Tile::template kPitch<float> << ' '
            << Histogram<Tile>::kMostLevels;
  cusim::launch(dim3(1), dim3(kTileThreads), 0, [] {
    for (int i = 0; i < Tile::kThreadUsers; ++i) std::cout << ' ' << Tile::user_of(i);
    for (int j = 0; j < Tile::kThreadItems; ++j) std::cout << ' ' << Tile::item_of(j);
  });
  std::cout << '\n';
}

void print_plan(const TopKPlan& plan) {
  std::cout << plan.capacity;
  for (const TopKPart& part : plan.parts) std::cout << ' ' << part.first << ' ' << part.last << ' ' << part.ranges;
  std::cout << '\n';
}

}  // namespace
}  // namespace bdkernels::cuda

int main() {
  using namespace bdkernels::cuda;
  int64_t a, b, c, d;
  for (std::string what; std::cin >> what;) {
    if (what == "tile" && std::cin >> a >> b) {
      print_tile<64, 64>(a, b), print_tile<32, 128>(a, b), print_tile<16, 256>(a, b), print_tile<8, 128>(a, b);
      print_tile<64, 128>(a, b);
    } else if (what == "split" && std::cin >> a >> b >> c >> d) {
      const Split split(a, b, c, d);
      std::cout << split.items_of_block << ' ' << split.n << '\n';
    } else if (what == "topk" && std::cin >> a >> b >> c >> d) {
      print_plan(TopKPlan(a, b, c, d, 0));
    } else {
      return 1;
    }
  }
}
