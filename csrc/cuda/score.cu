// score: listed items, and blocks of the catalog (product.h). Same bits either way (core/score.h).
//
// Listed: fuses the gather of the item rows with their products: 4 B C d bytes of rows are read once and 2 B C d FLOPs done,
// so its floor is the memory's. A warp takes 32 pairs (listed.h).
#include "listed.h"
#include "product.h"

namespace bdkernels::cuda {
namespace {

constexpr int kWarps = 4;

template <class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    score_kernel(const float* users, Table<T> items, const int64_t* ids, int64_t pairs, int64_t c, float* out) {
  BDKERNELS_SHARED(float, factors, kWarps* kListedFloats);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t first = (int64_t{blockIdx.x} * kWarps + warp) * kWarp, pair = first + lane;
  const int64_t id = pair < pairs ? ids[pair] : 0;
  const float* user = users + (pair < pairs ? pair / c : 0) * items.d;
  const int n = static_cast<int>(pairs - first < kWarp ? pairs - first : kWarp);
  const float sum = listed_score(user, items, id, n, factors + warp * kListedFloats);
  if (pair < pairs) out[pair] = sum;
}

template <class P>
__global__ void __launch_bounds__(kTileThreads, P::Tile::kBlocksOfSm)
    score_block_kernel(P product, int64_t items_of_block, float* out) {
  BDKERNELS_DYNAMIC_SHARED(shared);
  const int64_t first_user = int64_t{blockIdx.x} * P::kUsers, begin = blockIdx.y * items_of_block;
  const int64_t n = product.items.n, end = begin + items_of_block < n ? begin + items_of_block : n;
  const int rows = product.rows(first_user);
  product.run(reinterpret_cast<typename P::Stage*>(shared), first_user, begin, end, [&](const auto& sums, int64_t item0) {
    for_each_score<typename P::Tile>(
        sums, rows, item0, end, [&](int user, int64_t item, float score) { out[(first_user + user) * n + item] = score; });
  });
}

}  // namespace

void score(const Users& users, const Items& items, const int64_t* ids, int64_t c, float* out, Stream stream) {
  const int64_t pairs = users.n * c;
  const dim3 grid(static_cast<unsigned>(div_up(pairs, kWarps * kWarp)));
  with_table(items, [&](auto table) {
    launch(score_kernel<typename decltype(table)::Element>, grid, dim3(kWarps * kWarp), 0, stream, users.data, table, ids,
           pairs, c, out);
  });
}

void score_block(const Users& users, const Items& items, int64_t blocks, float* out, Stream stream) {
  with_table(items, [&](auto table) {
    using P = Product<Fma<typename decltype(table)::Element, 64, 64>>;
    const int64_t tiles = div_up(users.n, P::kUsers);
    const int64_t at_once = blocks ? blocks : places(score_block_kernel<P>, kTileThreads, P::kSharedBytes);
    const Split split(items.n, P::kItems, tiles, at_once);
    const dim3 grid(static_cast<unsigned>(tiles), split.n);
    launch(score_block_kernel<P>, grid, dim3(kTileThreads), P::kSharedBytes, stream, P(users, table), split.items_of_block,
           out);
  });
}

}  // namespace bdkernels::cuda
