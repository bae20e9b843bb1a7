#include "data/h5_file.h"

#include <hdf5.h>

#include <utility>

#include "base/error.h"

namespace t2r::data {
namespace {

constexpr size_t kMaxTextBytes = 64 << 10;

/// Makes the library silent on this thread, and keeps it from closing files when the process ends:
/// every handle is closed here, and 1.10.8 crashes there on a file whose closing has failed (full
/// disk).
void prepare_library() {
  [[maybe_unused]] static const herr_t once = H5dont_atexit();
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

/// Closes its identifier when it dies; errors there are dropped, because destructors never throw.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle(hid_t id, Close close) : id_(id), close_(close) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&&) = delete;

  hid_t id() const { return id_; }
  hid_t release() { return std::exchange(id_, -1); }

 private:
  hid_t id_;
  Close close_;
};

herr_t append_message(unsigned, const H5E_error2_t* entry, void* text) noexcept {
  auto& message = *static_cast<std::string*>(text);
  if (entry->desc != nullptr && *entry->desc != '\0') {
    if (!message.empty()) message += "; ";
    message += entry->desc;
  }
  return 0;
}

/// The library's error stack of this thread, innermost cause first.
std::string last_error_text() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, &append_message, &text);
  H5Eclear2(H5E_DEFAULT);
  return text.empty() ? "no error text" : text;
}

/// Names the file in every error; the kind of error depends on what the file was opened for.
struct Context {
  std::string path;
  bool is_writing = false;

  [[noreturn]] void fail(const std::string& message) const {
    if (is_writing) throw WriteError(concat(path, ": ", message));
    throw DataError(concat(path, ": ", message));
  }

  /// Passes on what an HDF5 call returned; negative means that it failed.
  template <class Result>
  Result check(const char* call, const std::string& subject, Result result) const {
    if (result >= 0) return result;
    const std::string of_subject = subject.empty() ? "" : concat("(", subject, ")");
    fail(concat("HDF5 ", call, of_subject, " failed: ", last_error_text()));
  }
};

hid_t disk_type(H5Integer type) {
  switch (type) {
    case H5Integer::kUint16:
      return H5T_STD_U16LE;
    case H5Integer::kUint32:
      return H5T_STD_U32LE;
    case H5Integer::kUint64:
      return H5T_STD_U64LE;
  }
  throw ContractError("disk_type: not an H5Integer");
}

Handle make_properties(const Context& file, hid_t property_class) {
  return Handle(file.check("H5Pcreate", "", H5Pcreate(property_class)), &H5Pclose);
}

Handle make_access_properties(const Context& file) {
  Handle access = make_properties(file, H5P_FILE_ACCESS);
  file.check("H5Pset_libver_bounds",
             "",
             H5Pset_libver_bounds(access.id(), H5F_LIBVER_V18, H5F_LIBVER_V18));
  file.check("H5Pset_file_locking", "", H5Pset_file_locking(access.id(), false, true));
  return access;
}

Handle open_attribute(const Context& file, hid_t file_id, const std::string& name) {
  return Handle(file.check("H5Aopen", name, H5Aopen(file_id, name.c_str(), H5P_DEFAULT)),
                &H5Aclose);
}

Handle open_dataset(const Context& file, hid_t file_id, const std::string& name) {
  return Handle(file.check("H5Dopen", name, H5Dopen2(file_id, name.c_str(), H5P_DEFAULT)),
                &H5Dclose);
}

Handle make_line_space(const Context& file, int64_t num_elements) {
  const hsize_t size = static_cast<hsize_t>(num_elements);
  return Handle(file.check("H5Screate_simple", "", H5Screate_simple(1, &size, nullptr)), &H5Sclose);
}

void write_scalar_attribute(const Context& file,
                            hid_t file_id,
                            const std::string& name,
                            hid_t type_on_disk,
                            hid_t type_in_memory,
                            const void* value) {
  const Handle space(file.check("H5Screate", name, H5Screate(H5S_SCALAR)), &H5Sclose);
  const Handle attribute(
      file.check(
          "H5Acreate",
          name,
          H5Acreate2(file_id, name.c_str(), type_on_disk, space.id(), H5P_DEFAULT, H5P_DEFAULT)),
      &H5Aclose);
  file.check("H5Awrite", name, H5Awrite(attribute.id(), type_in_memory, value));
}

/// Type of an attribute after checking that it is a single value of `expected` class: what H5Aread
/// writes must fit where it is told to write.
Handle check_scalar_attribute(const Context& file,
                              const Handle& attribute,
                              const std::string& name,
                              H5T_class_t expected) {
  const Handle space(file.check("H5Aget_space", name, H5Aget_space(attribute.id())), &H5Sclose);
  const hssize_t count =
      file.check("H5Sget_simple_extent_npoints", name, H5Sget_simple_extent_npoints(space.id()));
  Handle type(file.check("H5Aget_type", name, H5Aget_type(attribute.id())), &H5Tclose);
  if (count != 1 || H5Tget_class(type.id()) != expected) {
    file.fail(concat("attribute ",
                     name,
                     " must be one ",
                     expected == H5T_INTEGER ? "integer" : "fixed-length text"));
  }
  return type;
}

}  // namespace

struct H5File::Impl {
  Context context;
  Handle file;
};

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return concat(major, ".", minor, ".", release);
}

int64_t num_bytes_of(H5Integer type) {
  switch (type) {
    case H5Integer::kUint16:
      return 2;
    case H5Integer::kUint32:
      return 4;
    case H5Integer::kUint64:
      return 8;
  }
  throw ContractError("num_bytes_of: not an H5Integer");
}

H5File::H5File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
H5File::H5File(H5File&&) noexcept = default;
H5File& H5File::operator=(H5File&&) noexcept = default;
H5File::~H5File() = default;

H5File H5File::create(const std::filesystem::path& path, int64_t user_block_bytes) {
  prepare_library();
  const Context context{path.string(), true};
  const Handle access = make_access_properties(context);
  const Handle creation = make_properties(context, H5P_FILE_CREATE);
  context.check("H5Pset_obj_track_times", "", H5Pset_obj_track_times(creation.id(), false));
  context.check("H5Pset_userblock",
                "",
                H5Pset_userblock(creation.id(), static_cast<hsize_t>(user_block_bytes)));
  // All attributes stay in the root group's header.
  context.check("H5Pset_attr_phase_change", "", H5Pset_attr_phase_change(creation.id(), 64, 0));
  Handle file(
      context.check(
          "H5Fcreate", "", H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.id(), access.id())),
      &H5Fclose);
  return H5File(std::make_unique<Impl>(Impl{context, std::move(file)}));
}

H5File H5File::open(const std::filesystem::path& path) {
  prepare_library();
  const Context context{path.string(), false};
  const Handle access = make_access_properties(context);
  Handle file(context.check("H5Fopen", "", H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.id())),
              &H5Fclose);
  return H5File(std::make_unique<Impl>(Impl{context, std::move(file)}));
}

void H5File::write_attribute(const std::string& name, int64_t value) {
  write_scalar_attribute(
      impl_->context, impl_->file.id(), name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void H5File::write_attribute(const std::string& name, const std::string& value) {
  const Context& context = impl_->context;
  const Handle type(context.check("H5Tcopy", name, H5Tcopy(H5T_C_S1)), &H5Tclose);
  context.check("H5Tset_size", name, H5Tset_size(type.id(), value.size() + 1));
  context.check("H5Tset_cset", name, H5Tset_cset(type.id(), H5T_CSET_UTF8));
  write_scalar_attribute(context, impl_->file.id(), name, type.id(), type.id(), value.c_str());
}

void H5File::create_dataset(const std::string& name, H5Integer type, int64_t num_elements) {
  const Context& context = impl_->context;
  const Handle space = make_line_space(context, num_elements);
  const Handle creation = make_properties(context, H5P_DATASET_CREATE);
  context.check("H5Pset_layout", name, H5Pset_layout(creation.id(), H5D_CONTIGUOUS));
  context.check("H5Pset_alloc_time", name, H5Pset_alloc_time(creation.id(), H5D_ALLOC_TIME_EARLY));
  context.check("H5Pset_fill_time", name, H5Pset_fill_time(creation.id(), H5D_FILL_TIME_NEVER));
  context.check("H5Pset_obj_track_times", name, H5Pset_obj_track_times(creation.id(), false));
  const hid_t id = H5Dcreate2(impl_->file.id(),
                              name.c_str(),
                              disk_type(type),
                              space.id(),
                              H5P_DEFAULT,
                              creation.id(),
                              H5P_DEFAULT);
  const Handle dataset(context.check("H5Dcreate", name, id), &H5Dclose);
}

void H5File::write_elements(const std::string& name,
                            int64_t first,
                            int64_t count,
                            const void* elements) {
  const Context& context = impl_->context;
  const Handle dataset = open_dataset(context, impl_->file.id(), name);
  const Handle type(context.check("H5Dget_type", name, H5Dget_type(dataset.id())), &H5Tclose);
  const Handle space(context.check("H5Dget_space", name, H5Dget_space(dataset.id())), &H5Sclose);
  const hsize_t start = static_cast<hsize_t>(first);
  const hsize_t size = static_cast<hsize_t>(count);
  context.check("H5Sselect_hyperslab",
                name,
                H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, &start, nullptr, &size, nullptr));
  const Handle memory = make_line_space(context, count);
  context.check("H5Dwrite",
                name,
                H5Dwrite(dataset.id(), type.id(), memory.id(), space.id(), H5P_DEFAULT, elements));
}

bool H5File::has_attribute(const std::string& name) const {
  return impl_->context.check("H5Aexists", name, H5Aexists(impl_->file.id(), name.c_str())) > 0;
}

int64_t H5File::read_integer(const std::string& name) const {
  const Context& context = impl_->context;
  const Handle attribute = open_attribute(context, impl_->file.id(), name);
  check_scalar_attribute(context, attribute, name, H5T_INTEGER);
  int64_t value = 0;
  context.check("H5Aread", name, H5Aread(attribute.id(), H5T_NATIVE_INT64, &value));
  return value;
}

std::string H5File::read_text(const std::string& name) const {
  const Context& context = impl_->context;
  const Handle attribute = open_attribute(context, impl_->file.id(), name);
  const Handle type = check_scalar_attribute(context, attribute, name, H5T_STRING);
  const size_t size = H5Tget_size(type.id());
  const htri_t is_variable =
      context.check("H5Tis_variable_str", name, H5Tis_variable_str(type.id()));
  if (is_variable > 0 || size == 0 || size > kMaxTextBytes) {
    context.fail(
        concat("attribute ", name, " must be a fixed-length text of 1..", kMaxTextBytes, " bytes"));
  }
  std::string value(size, '\0');
  context.check("H5Aread", name, H5Aread(attribute.id(), type.id(), value.data()));
  value.resize(value.find_last_not_of('\0') + 1);
  return value;
}

H5Extent H5File::find_dataset(const std::string& name) const {
  const Context& context = impl_->context;
  const Handle dataset = open_dataset(context, impl_->file.id(), name);
  const Handle type(context.check("H5Dget_type", name, H5Dget_type(dataset.id())), &H5Tclose);
  const Handle space(context.check("H5Dget_space", name, H5Dget_space(dataset.id())), &H5Sclose);
  const Handle creation(
      context.check("H5Dget_create_plist", name, H5Dget_create_plist(dataset.id())), &H5Pclose);
  if (H5Pget_layout(creation.id()) != H5D_CONTIGUOUS ||
      H5Sget_simple_extent_ndims(space.id()) != 1) {
    context.fail(concat("dataset ", name, " must be contiguous and one-dimensional"));
  }
  H5Extent extent;
  bool is_known = false;
  for (const H5Integer candidate : {H5Integer::kUint16, H5Integer::kUint32, H5Integer::kUint64}) {
    if (H5Tequal(type.id(), disk_type(candidate)) <= 0) continue;
    extent.type = candidate;
    is_known = true;
  }
  if (!is_known) context.fail(concat("dataset ", name, " must be little-endian uint16/32/64"));
  extent.num_elements =
      context.check("H5Sget_simple_extent_npoints", name, H5Sget_simple_extent_npoints(space.id()));
  const haddr_t offset = H5Dget_offset(dataset.id());
  if (offset == HADDR_UNDEF) context.fail(concat("dataset ", name, " has no storage in this file"));
  extent.file_offset = static_cast<int64_t>(offset);
  return extent;
}

void H5File::close() {
  const hid_t id = impl_->file.release();
  impl_->context.check("H5Fclose", "", H5Fclose(id));
}

}  // namespace t2r::data
