// Split of product.h, as a filter: each line of input is what its constructor takes, and of output what it gives.
#include <iostream>

#include "../../../csrc/cuda/product.h"

int main() {
  for (int64_t items, tile, others, places, most; std::cin >> items >> tile >> others >> places >> most;) {
    const bdkernels::cuda::Split split(items, tile, others, places, most);
    std::cout << split.items_of_block << ' ' << split.n << '\n';
  }
}
