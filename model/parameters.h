#pragma once

#include <torch/types.h>

#include <string>
#include <vector>

namespace t2r::model {

/// A tensor of the Hugging Face layout that lives in some rows of a parameter.
struct ParameterPiece {
  std::string name;  ///< its Hugging Face name
  int64_t begin_row = 0;
  int64_t end_row = 0;
  bool is_new = false;  ///< added by T2R: absent from the pretrained model
};

/// A leaf of the graph. Projections that read the same input are one parameter with several pieces,
/// so that they cost one matrix product.
struct Parameter {
  torch::Tensor value;
  torch::Tensor
      master;  ///< float32, what training updates and files hold; undefined where value is that
  std::vector<ParameterPiece> pieces;
  int64_t group = 0;   ///< layer it belongs to: 0 embeddings, 1.. blocks, last: final norm and head
  bool decays = true;  ///< weight decay applies: matrices, not biases and norms

  /// The master, where there is one.
  torch::Tensor exact_value() const { return (master.defined() ? master : value).detach(); }

  /// Rows of the exact value.
  torch::Tensor piece_value(const ParameterPiece& piece) const {
    return exact_value().narrow(0, piece.begin_row, piece.end_row - piece.begin_row);
  }
};

/// Where a model computes, and in what.
struct Placement {
  torch::Device device = torch::kCPU;
  torch::ScalarType dtype = torch::kFloat32;  ///< of values and activations: float32, bfloat16
};

/// All parameters of a model, in the order in which the forward pass uses them.
class ParameterSet {
 public:
  /// @param device  torch::kMeta: names and shapes without memory
  explicit ParameterSet(torch::Device device = torch::kCPU) : device_(device) {}

  /// Adds an uninitialised float32 parameter made of one piece.
  torch::Tensor add(const std::string& name,
                    std::vector<int64_t> shape,
                    int64_t group,
                    bool decays);

  /// Adds one parameter of several pieces stacked along dimension 0; `rows` has the height of each.
  torch::Tensor add_stacked(const std::vector<std::string>& names,
                            const std::vector<int64_t>& rows,
                            std::vector<int64_t> row_shape,
                            int64_t group,
                            bool decays);

  std::vector<Parameter>& all() { return parameters_; }
  const std::vector<Parameter>& all() const { return parameters_; }

  /// Moves the values, for a model that is only run: without gradients and masters.
  void move_to(const Placement& placement);

  /// Number of scalars; with `only_new`, of those that T2R added.
  int64_t num_scalars(bool only_new = false) const;

  /// Hash of every exact value, in order: equal for the same weights wherever they came from.
  std::string content_hash() const;

  /// Marks the pieces of the parameter added last as T2R's own.
  void mark_last_as_new();

 private:
  torch::Device device_;
  std::vector<Parameter> parameters_;
};

/// One flat buffer that all parameters, and one that all gradients, are views into.
///
/// Order: the last parameter of the forward pass first, since its gradient is ready first. No gaps
/// between slices. Gradients are float32 whatever the values are, so that sums over micro-steps,
/// over uses of a tied parameter and over ranks are not rounded in between. With bfloat16 values
/// the arena keeps float32 masters, which training updates and rounds into the values.
class ParameterArena {
 public:
  struct Slice {
    size_t index;    ///< in ParameterSet::all()
    int64_t offset;  ///< elements
    int64_t numel;
  };

  /// Moves the parameters' values into the arena and points value, master and grad at it. The set
  /// must outlive the arena.
  explicit ParameterArena(ParameterSet& parameters, const Placement& placement = {});

  torch::Tensor masters() const { return masters_; }  ///< [size] float32
  torch::Tensor values() const { return values_; }    ///< [size]; the masters themselves if float32
  torch::Tensor gradients() const { return gradients_; }  ///< [size] float32
  bool has_own_values() const { return !values_.is_same(masters_); }
  const std::vector<Slice>& slices() const { return slices_; }
  ParameterSet& parameters() const { return parameters_; }

  /// Rounds the masters into the values, after something wrote the masters.
  void round_masters();

 private:
  ParameterSet& parameters_;
  torch::Tensor masters_;
  torch::Tensor values_;
  torch::Tensor gradients_;
  std::vector<Slice> slices_;
};

}  // namespace t2r::model
