// sample
#include <tuple>
#include <vector>

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

// users, items and bias of a model.
cpu::Model model_of(const std::vector<Tensor>& tables) {
  STD_TORCH_CHECK(tables.size() == 3, "bdkernels: draw: expected users, items and bias");
  return {users_of(tables[0]), items_of(tables[0], tables[1], tables[2])};
}

// indptr and indices.
Seen seen_of(const std::vector<Tensor>& rows, int64_t n) {
  STD_TORCH_CHECK(rows.size() == 2, "bdkernels: draw: expected indptr and indices");
  return binding::seen_of(rows[0], rows[1], n);
}

// A catalog: the items of both models, and what users have seen of it.
struct Catalog {
  std::vector<Tensor> teacher, student, seen;
};

// The items `counted` [m] that ranks are counted over; all where it is empty. Both models have one row for each of them.
cpu::Subset subset_of(const Tensor& counted, const Catalog& of, int64_t rows) {
  if (counted.numel() == 0) return {};
  const cpu::Model teacher = model_of(of.teacher), student = model_of(of.student);
  STD_TORCH_CHECK(teacher.items.n == counted.size(0) && student.items.n == counted.size(0),
                  "bdkernels: counted: expected a row for each");
  return {longs(counted, "counted"), {teacher.items, student.items}, seen_of(of.seen, rows)};
}

// The whole sampler: ids [B, k] of both directions, and the model (0 teacher, 1 student; -1 none), row and item of a score
// that is NaN. A model is its users, items and bias, and what users have seen is indptr and indices: those of the catalog
// and those of the items `counted`, over which ranks are counted. `kinds`, `parameters` and `flipped` are the weight codes
// to the student and to the teacher, where the kind -1 is a direction that is off; `limits` are probe, min_hits and cap.
std::tuple<Tensor, Tensor, int64_t, int64_t, int64_t> draw(
    std::vector<Tensor> teacher, std::vector<Tensor> student, std::vector<Tensor> seen, const Tensor& counted,
    std::vector<Tensor> counted_teacher, std::vector<Tensor> counted_student, std::vector<Tensor> counted_seen,
    const Tensor& row_keys, int64_t k, int64_t seed, int64_t step, std::vector<int64_t> kinds,
    std::vector<double> parameters, std::vector<int64_t> flipped, std::vector<int64_t> limits, int64_t tile) {
  const int64_t rows = row_keys.size(0);
  STD_TORCH_CHECK(kinds.size() == 2 && parameters.size() == 2 && flipped.size() == 2 && limits.size() == 3,
                  "bdkernels: draw: expected two weights and three limits");
  const Tensor ids[2] = {torch::stable::new_empty(row_keys, {rows, k}), torch::stable::new_empty(row_keys, {rows, k})};
  const Tensor hits[2] = {torch::stable::new_zeros(row_keys, {rows}), torch::stable::new_zeros(row_keys, {rows})};
  const auto direction = [&](size_t i) {
    Tensor drawn = ids[i];
    torch::stable::fill_(drawn, -1);
    return cpu::Direction{kinds[i] >= 0, Weight{static_cast<Kind>(kinds[i]), parameters[i], flipped[i] != 0},
                          static_cast<int64_t*>(drawn.mutable_data_ptr()),
                          static_cast<int64_t*>(hits[i].mutable_data_ptr())};
  };
  const cpu::Sampler sampler{{model_of(teacher), model_of(student)},
                             {direction(0), direction(1)},
                             seen_of(seen, rows),
                             longs(row_keys, "row_keys"),
                             k,
                             static_cast<uint64_t>(seed),
                             static_cast<uint32_t>(step),
                             limits[0],
                             limits[1],
                             limits[2],
                             tile,
                             [](int64_t n, int64_t grain, const cpu::Body& body) { parallel_for(0, n, grain, body); },
                             subset_of(counted, {counted_teacher, counted_student, counted_seen}, rows)};
  const auto nan = sampler.run();
  return {ids[0], ids[1], nan.model, nan.row, nan.item};
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
      "draw(Tensor[] teacher, Tensor[] student, Tensor[] seen, Tensor counted, Tensor[] counted_teacher, "
      "Tensor[] counted_student, Tensor[] counted_seen, Tensor row_keys, int k, int seed, int step, int[] kinds, "
      "float[] parameters, int[] flipped, int[] limits, int tile) -> (Tensor, Tensor, int, int, int)");
}

STABLE_TORCH_LIBRARY_IMPL(bdkernels_cpu, CPU, m) {
  m.impl("propose", BDKERNELS_BOX(&propose));
  m.impl("accept", BDKERNELS_BOX(&accept));
  m.impl("draw", BDKERNELS_BOX(&draw));
}

}  // namespace bdkernels::binding
