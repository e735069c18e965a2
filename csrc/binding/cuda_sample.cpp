// sample
#include "cuda_arguments.h"

namespace bdkernels::binding {
namespace {

Tensor propose(int64_t seed, int64_t step, const Tensor& row_keys, int64_t start, int64_t stop, int64_t n_items,
               const Optional& indptr, const Optional& indices) {
  const OnDevice device(row_keys);
  const int64_t rows = row_keys.size(0), c = stop - start;
  Tensor out = torch::stable::new_empty(row_keys, {rows, c});
  cuda::propose(static_cast<uint64_t>(seed), static_cast<uint32_t>(step), longs(row_keys, "row_keys"), rows, start, c,
                n_items, seen_of(indptr, indices, rows), out_of<int64_t>(out), device.stream());
  return out;
}

Tensor accept(int64_t seed, int64_t step, const Tensor& row_keys, int64_t start, const Tensor& rank_guide,
              const Tensor& rank_learner, const Tensor& candidates, int64_t kind, double parameter, bool flipped,
              bool to_teacher) {
  const OnDevice device(row_keys);
  const int64_t rows = rank_guide.size(0), c = rank_guide.size(1);
  STD_TORCH_CHECK(row_keys.numel() == rows && candidates.numel() == rows && rank_learner.numel() == rows * c,
                  "bdkernels: accept: shapes");
  Tensor out = torch::stable::new_empty(rank_guide, {rows, c}, ScalarType::Bool);
  cuda::accept(static_cast<uint64_t>(seed), static_cast<uint32_t>(step), longs(row_keys, "row_keys"), rows, start, c,
               longs(rank_guide, "rank_guide"), longs(rank_learner, "rank_learner"), longs(candidates, "candidates"),
               {static_cast<Kind>(kind), parameter, flipped}, to_teacher, out_of<bool>(out), device.stream());
  return out;
}

void draw_round(const Tensor& teacher_users, const Tensor& teacher_items, const Optional& teacher_bias,
                const Tensor& student_users, const Tensor& student_items, const Optional& student_bias,
                const Optional& indptr, const Optional& indices, const Tensor& row_keys, const Tensor& candidates,
                int64_t student_kind, double student_parameter, bool student_flipped, int64_t teacher_kind,
                double teacher_parameter, bool teacher_flipped, int64_t probe, int64_t min_hits, int64_t cap,
                const Tensor& seed, const Tensor& step, const Tensor& rows, const Tensor& live, Tensor ids, Tensor hits,
                Tensor next_rows, Tensor next_live, Tensor short_rows, Tensor nan_at, int64_t start, int64_t stop,
                int64_t precision, int64_t blocks) {
  const OnDevice device(rows);
  const int64_t n_rows = rows.size(0), b = row_keys.size(0), c = stop - start;
  STD_TORCH_CHECK(ids.dim() == 3 && teacher_users.size(0) == b && student_users.size(0) == b && n_rows > 0 && c > 0 &&
                      c <= cuda::kMostProposals && teacher_items.size(0) == student_items.size(0),
                  "bdkernels: draw_round: shapes");
  STD_TORCH_CHECK(precision >= 0 && precision <= static_cast<int64_t>(cuda::Precision::kFp16), "bdkernels: precision");
  const int64_t k = ids.size(2);
  const cuda::Round round{
      .users = {users_of(teacher_users), users_of(student_users)},
      .items = {items_of(teacher_users, teacher_items, teacher_bias), items_of(student_users, student_items, student_bias)},
      .seen = seen_of(indptr, indices, b),
      .row_keys = longs(row_keys, "row_keys"),
      .candidates = longs_of(candidates, b, "candidates"),
      .weights = {{static_cast<Kind>(student_kind), student_parameter, student_flipped},
                  {static_cast<Kind>(teacher_kind), teacher_parameter, teacher_flipped}},
      .on = {student_kind >= 0, teacher_kind >= 0},
      .probe = probe,
      .min_hits = min_hits,
      .cap = cap,
      .seed = longs_of(seed, 1, "seed"),
      .step = longs_of(step, 1, "step"),
      .rows = longs(rows, "rows"),
      .live = longs_of(live, 1, "live"),
      .n_rows = n_rows,
      .b = b,
      .k = k,
      .ids = longs_of(ids, 2 * b * k, "ids"),
      .hits = longs_of(hits, 2 * b, "hits"),
      .next_rows = longs_of(next_rows, n_rows, "next_rows"),
      .next_live = longs_of(next_live, 1, "next_live"),
      .short_rows = longs_of(short_rows, 1, "short"),
      .nan_at = longs_of(nan_at, 2, "nan_at")};
  const int64_t pairs = n_rows * c, bins = n_rows * (c + 1);
  const auto [memory, t, s, histogram, order, keys] = scratch<float, float, int64_t, uint16_t, int64_t>(
      rows, {n_rows * round.items[0].d, n_rows * round.items[1].d, 2 * bins, 2 * pairs, 2 * pairs});
  cuda::draw_round(round, {{t, s}, {keys, keys + pairs}, {order, order + pairs}, {histogram, histogram + bins}}, start, stop,
                   static_cast<cuda::Precision>(precision), blocks, device.stream());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bdkernels_cuda, m) {
  m.def(
      "propose(int seed, int step, Tensor row_keys, int start, int stop, int n_items, Tensor? indptr, Tensor? indices) "
      "-> Tensor");
  m.def(
      "accept(int seed, int step, Tensor row_keys, int start, Tensor rank_guide, Tensor rank_learner, Tensor candidates, "
      "int kind, float parameter, bool flipped, bool to_teacher) -> Tensor");
  m.def(
      "draw_round(Tensor teacher_users, Tensor teacher_items, Tensor? teacher_bias, Tensor student_users, "
      "Tensor student_items, Tensor? student_bias, Tensor? indptr, Tensor? indices, Tensor row_keys, Tensor candidates, "
      "int student_kind, float student_parameter, bool student_flipped, int teacher_kind, float teacher_parameter, "
      "bool teacher_flipped, int probe, int min_hits, int cap, Tensor seed, Tensor step, Tensor rows, Tensor live, "
      "Tensor(a!) ids, Tensor(b!) hits, Tensor(c!) next_rows, Tensor(d!) next_live, Tensor(e!) short_rows, "
      "Tensor(f!) nan_at, int start, int stop, int precision, int blocks) -> ()");
}

BDKERNELS_CUDA_IMPL(m) {
  m.impl("propose", BDKERNELS_BOX(&propose));
  m.impl("accept", BDKERNELS_BOX(&accept));
  m.impl("draw_round", BDKERNELS_BOX(&draw_round));
}

}  // namespace bdkernels::binding
