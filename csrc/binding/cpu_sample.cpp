// sample
#include <tuple>

#include "../cpu/sampler.h"
#include "arguments.h"

namespace bdkernels::binding {
namespace {

Tensor propose(int64_t seed, int64_t step, const Tensor& row_keys, int64_t start, int64_t stop, int64_t n_items,
               const Tensor& indptr, const Tensor& indices) {
  const int64_t rows = row_keys.size(0), c = stop - start;
  const auto seen = seen_of(indptr, indices, rows);
  const int64_t* id = longs(row_keys, "row_keys");
  Tensor out = torch::stable::new_empty(row_keys, {rows, c});
  int64_t* o = static_cast<int64_t*>(out.mutable_data_ptr());
  parallel_for(0, rows, 16, [&](int64_t a, int64_t b) {
    cpu::propose(static_cast<uint64_t>(seed), static_cast<uint32_t>(step), id, start, c, n_items, seen, a, b, o);
  });
  return out;
}

Tensor accept(int64_t seed, int64_t step, const Tensor& row_keys, int64_t start, const Tensor& rank_guide,
              const Tensor& rank_learner, const Tensor& candidates, int64_t kind, double parameter, bool flipped,
              bool to_teacher) {
  const Weight weight{static_cast<Kind>(kind), parameter, flipped};
  const int64_t rows = row_keys.size(0), c = rank_guide.size(1);
  const int64_t *id = longs(row_keys, "row_keys"), *guide = longs(rank_guide, "rank_guide"),
                *learner = longs(rank_learner, "rank_learner"), *n = longs(candidates, "candidates");
  Tensor out = torch::stable::new_empty(rank_guide, {rows, c}, ScalarType::Bool);
  bool* o = static_cast<bool*>(out.mutable_data_ptr());
  parallel_for(0, rows, 16, [&](int64_t a, int64_t b) {
    cpu::accept(static_cast<uint64_t>(seed), static_cast<uint32_t>(step), id, start, c, guide, learner, n, weight,
                to_teacher, a, b, o);
  });
  return out;
}

// The whole sampler: ids [B, k] of both directions, and the model (0 teacher, 1 student; -1 none), row and item of a score
// that is NaN. A direction of kind -1 is off. Ranks are counted over items `counted` [m], whose rows and seen ones follow;
// over all where it is empty.
std::tuple<Tensor, Tensor, int64_t, int64_t, int64_t> draw(
    const Tensor& users, const Tensor& items, const Tensor& bias, const Tensor& student_users, const Tensor& student_items,
    const Tensor& student_bias, const Tensor& indptr, const Tensor& indices, const Tensor& row_keys, int64_t k, int64_t seed,
    int64_t step, int64_t kind_to_student, double parameter_to_student, bool flipped_to_student, int64_t kind_to_teacher,
    double parameter_to_teacher, bool flipped_to_teacher, const Tensor& counted, const Tensor& counted_items,
    const Tensor& counted_bias, const Tensor& counted_student_items, const Tensor& counted_student_bias,
    const Tensor& counted_indptr, const Tensor& counted_indices, int64_t probe, int64_t min_hits, int64_t cap,
    int64_t tile) {
  const int64_t rows = row_keys.size(0);
  const auto direction = [&](int64_t kind, double parameter, bool flipped, const Tensor& ids, const Tensor& hits) {
    return cpu::Direction{kind >= 0, Weight{static_cast<Kind>(kind), parameter, flipped},
                          static_cast<int64_t*>(ids.mutable_data_ptr()), static_cast<int64_t*>(hits.mutable_data_ptr())};
  };
  Tensor ids_s = torch::stable::new_empty(row_keys, {rows, k}), ids_t = torch::stable::new_empty(row_keys, {rows, k});
  torch::stable::fill_(ids_s, -1);
  torch::stable::fill_(ids_t, -1);
  Tensor hits_s = torch::stable::new_zeros(row_keys, {rows}), hits_t = torch::stable::new_zeros(row_keys, {rows});
  cpu::Subset subset;
  if (counted.numel() > 0) {
    subset = {
        longs(counted, "counted"),
        {items_of(users, counted_items, counted_bias), items_of(student_users, counted_student_items, counted_student_bias)},
        seen_of(counted_indptr, counted_indices, rows)};
    STD_TORCH_CHECK(counted_items.size(0) == counted.size(0) && counted_student_items.size(0) == counted.size(0),
                    "bdkernels: counted: expected a row for each");
  }
  const cpu::Sampler sampler{{{users_of(users), items_of(users, items, bias)},
                              {users_of(student_users), items_of(student_users, student_items, student_bias)}},
                             {direction(kind_to_student, parameter_to_student, flipped_to_student, ids_s, hits_s),
                              direction(kind_to_teacher, parameter_to_teacher, flipped_to_teacher, ids_t, hits_t)},
                             seen_of(indptr, indices, rows),
                             longs(row_keys, "row_keys"),
                             k,
                             static_cast<uint64_t>(seed),
                             static_cast<uint32_t>(step),
                             probe,
                             min_hits,
                             cap,
                             tile,
                             [](int64_t n, int64_t grain, const cpu::Body& body) { parallel_for(0, n, grain, body); },
                             subset};
  const auto nan = sampler.run();
  return {ids_s, ids_t, nan.model, nan.row, nan.item};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bdkernels_cpu, m) {
  m.def(
      "propose(int seed, int step, Tensor row_keys, int start, int stop, int n_items, Tensor indptr, Tensor indices) "
      "-> Tensor");
  m.def(
      "accept(int seed, int step, Tensor row_keys, int start, Tensor rank_guide, Tensor rank_learner, Tensor candidates, "
      "int kind, float parameter, bool flipped, bool to_teacher) -> Tensor");
  m.def(
      "draw(Tensor users, Tensor items, Tensor bias, Tensor student_users, Tensor student_items, Tensor student_bias, "
      "Tensor indptr, Tensor indices, Tensor row_keys, int k, int seed, int step, int kind_to_student, "
      "float parameter_to_student, bool flipped_to_student, int kind_to_teacher, float parameter_to_teacher, "
      "bool flipped_to_teacher, Tensor counted, Tensor counted_items, Tensor counted_bias, Tensor counted_student_items, "
      "Tensor counted_student_bias, Tensor counted_indptr, Tensor counted_indices, int probe, int min_hits, int cap, int "
      "tile) "
      "-> (Tensor, Tensor, int, int, int)");
}

STABLE_TORCH_LIBRARY_IMPL(bdkernels_cpu, CPU, m) {
  m.impl("propose", BDKERNELS_BOX(&propose));
  m.impl("accept", BDKERNELS_BOX(&accept));
  m.impl("draw", BDKERNELS_BOX(&draw));
}

}  // namespace bdkernels::binding
