# What the bindings see of csrc/mmrt.h: declarations, no logic.

from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "mmrt.h" nogil:
    # ---- status ----
    ctypedef enum mmrt_status:
        MMRT_OK
        MMRT_IO
        MMRT_FORMAT
        MMRT_UNSUPPORTED
        MMRT_ARGUMENT
        MMRT_NO_MEMORY
        MMRT_INTERRUPTED
        MMRT_NOT_FINITE

    ctypedef struct mmrt_error:
        mmrt_status status
        int os_errno
        char message[480]

    ctypedef unsigned char bool_t "bool"

    ctypedef int mmrt_poll_fn(void *context) noexcept

    # ---- system calls ----
    ctypedef enum mmrt_call:
        MMRT_CALL_COUNT

    const char *mmrt_call_name(mmrt_call call)
    const char *mmrt_call_since(mmrt_call call)
    mmrt_status mmrt_call_probe(mmrt_call call)

    # ---- mapped files ----
    ctypedef struct mmrt_mapping:
        pass

    ctypedef enum mmrt_map_flag:
        MMRT_MAP_FLAG_COUNT

    ctypedef struct mmrt_map_request:
        const char *path
        int fd
        uint64_t offset
        uint64_t length
        uint64_t address
        bool_t writable
        uint32_t flags

    ctypedef enum mmrt_advice:
        MMRT_ADVICE_WILLNEED
        MMRT_ADVICE_COUNT

    ctypedef enum mmrt_file_advice:
        MMRT_FILE_ADVICE_COUNT

    const char *mmrt_map_flag_name(mmrt_map_flag flag)
    mmrt_status mmrt_mapping_create(const mmrt_map_request *request, mmrt_mapping **out,
                                    mmrt_error *err)
    void mmrt_mapping_close(mmrt_mapping *mapping)
    int mmrt_mapping_fd(mmrt_mapping *mapping)
    bool_t mmrt_mapping_file(const mmrt_mapping *mapping, uint64_t *device, uint64_t *inode)
    void *mmrt_mapping_data(const mmrt_mapping *mapping)
    uint64_t mmrt_mapping_size(const mmrt_mapping *mapping)
    uint64_t mmrt_mapping_page_size(const mmrt_mapping *mapping)
    int64_t mmrt_mapping_modified_ns(const mmrt_mapping *mapping)
    void mmrt_guard_renew()
    mmrt_status mmrt_mapping_check(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                   uint64_t *gone, mmrt_error *err)
    mmrt_status mmrt_bytes_check(const void *bytes, uint64_t length, mmrt_error *err)
    bool_t mmrt_mapping_unreported(const mmrt_mapping *mapping)
    mmrt_status mmrt_mapping_flush(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                   mmrt_error *err)
    const char *mmrt_advice_name(mmrt_advice advice)
    const char *mmrt_advice_since(mmrt_advice advice)
    bool_t mmrt_advice_known(mmrt_advice advice)
    mmrt_status mmrt_mapping_advise(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                    mmrt_advice advice, mmrt_error *err)
    const char *mmrt_file_advice_name(mmrt_file_advice advice)
    mmrt_status mmrt_mapping_advise_file(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                         mmrt_file_advice advice, mmrt_error *err)
    mmrt_status mmrt_mapping_lock(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                  bool_t on_fault, mmrt_error *err)
    mmrt_status mmrt_mapping_unlock(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                    mmrt_error *err)
    uint64_t mmrt_mapping_pages(const mmrt_mapping *mapping, uint64_t offset, uint64_t length)
    mmrt_status mmrt_mapping_residency(const mmrt_mapping *mapping, uint64_t offset,
                                       uint64_t length, unsigned char *pages, bool_t *trusted,
                                       mmrt_error *err)
    mmrt_status mmrt_mapping_mapped(const mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                    unsigned char *pages, mmrt_error *err)

    # ---- memory nodes, NUMA ----
    ctypedef struct mmrt_pool:
        pass

    enum:
        MMRT_MAX_NODES
        MMRT_SET_LIMIT

    ctypedef struct mmrt_set:
        pass

    void mmrt_set_add(mmrt_set *set, int i)
    bool_t mmrt_set_has(const mmrt_set *set, int i)

    ctypedef struct mmrt_numa_node:
        int id
        mmrt_set cpus
        uint64_t total
        uint64_t free
        int distances[MMRT_MAX_NODES]

    ctypedef struct mmrt_numa_topology:
        int n_nodes
        mmrt_numa_node nodes[MMRT_MAX_NODES]
        mmrt_set allowed

    mmrt_status mmrt_numa_topology_read(const char *root, mmrt_numa_topology *out, mmrt_error *err)

    ctypedef enum mmrt_numa_mode:
        MMRT_NUMA_MODE_COUNT

    const char *mmrt_numa_mode_name(mmrt_numa_mode mode)

    ctypedef struct mmrt_numa_policy:
        mmrt_numa_mode mode
        mmrt_set nodes
        int flags

    mmrt_status mmrt_numa_set_policy(const mmrt_numa_policy *policy, mmrt_error *err)
    mmrt_status mmrt_numa_get_policy(mmrt_numa_policy *out, mmrt_error *err)
    mmrt_status mmrt_numa_bind(void *start, uint64_t length, const mmrt_numa_policy *policy,
                               bool_t move, mmrt_error *err)
    uint64_t mmrt_numa_n_pages(const void *start, uint64_t length)
    mmrt_status mmrt_numa_pages(const void *start, uint64_t length, int16_t *nodes,
                                mmrt_error *err)
    mmrt_status mmrt_numa_bind_pool(mmrt_pool *pool, int *nodes, mmrt_error *err)

    ctypedef struct mmrt_numa_range:
        uint64_t offset
        uint64_t length
        int node
        uint64_t n_pages
        uint64_t n_there
        uint64_t n_elsewhere

    mmrt_status mmrt_numa_place(mmrt_mapping *mapping, mmrt_numa_range *ranges, size_t n,
                                mmrt_poll_fn *poll, void *poll_context, mmrt_error *err)

    # ---- GGUF directories ----
    ctypedef struct mmrt_gguf:
        pass

    ctypedef void mmrt_reading(void *context, uint64_t offset, uint64_t length)

    ctypedef enum mmrt_gguf_value_type:
        MMRT_GGUF_STRING
        MMRT_GGUF_ARRAY

    ctypedef struct mmrt_gguf_entry:
        const char *key
        uint64_t key_length
        mmrt_gguf_value_type type
        mmrt_gguf_value_type element_type
        uint64_t count
        const unsigned char *data
        uint64_t size

    ctypedef struct mmrt_gguf_tensor:
        const char *name
        uint64_t name_length
        uint32_t type
        uint32_t n_dims
        const unsigned char *dims
        uint64_t offset
        uint64_t size

    mmrt_status mmrt_gguf_parse(const void *bytes, uint64_t size, const char *path,
                                mmrt_reading *reading, void *context, mmrt_gguf **out,
                                mmrt_error *err)
    void mmrt_gguf_free(mmrt_gguf *gguf)
    uint32_t mmrt_gguf_version(const mmrt_gguf *gguf)
    uint64_t mmrt_gguf_header_size(const mmrt_gguf *gguf)
    uint64_t mmrt_gguf_n_entries(const mmrt_gguf *gguf)
    uint64_t mmrt_gguf_n_tensors(const mmrt_gguf *gguf)
    const mmrt_gguf_entry *mmrt_gguf_entry_at(const mmrt_gguf *gguf, uint64_t index)
    const mmrt_gguf_tensor *mmrt_gguf_tensor_at(const mmrt_gguf *gguf, uint64_t index)
    uint64_t mmrt_gguf_dim(const mmrt_gguf_tensor *tensor, uint32_t dimension)

    # ---- processor and threads ----
    ctypedef enum mmrt_isa:
        MMRT_ISA_REF
        MMRT_ISA_COUNT

    const char *mmrt_isa_name(mmrt_isa isa)
    const char *mmrt_isa_missing(mmrt_isa isa)
    mmrt_status mmrt_isa_choose(mmrt_isa *out, mmrt_error *err)
    int mmrt_cpu_count()

    ctypedef struct mmrt_cgroup:
        char path[4096]
        size_t top

    bool_t mmrt_cgroup_find(const char *controller, int version, const char *groups,
                            const char *mounts, mmrt_cgroup *out)
    bool_t mmrt_cgroup_up(mmrt_cgroup *group)
    double mmrt_cgroup_cpus(const char *groups, const char *mounts)
    void mmrt_trim_heap()

    mmrt_status mmrt_pool_create(int n_threads, mmrt_pool **out, mmrt_error *err)
    void mmrt_pool_free(mmrt_pool *pool)
    int mmrt_pool_threads(const mmrt_pool *pool)

    # ---- tensor types, matrices ----
    mmrt_status mmrt_dequantize(uint32_t type, const void *blocks, float *out, size_t n_elements,
                                mmrt_error *err)

    ctypedef struct mmrt_weight:
        const void *data
        uint32_t type
        uint64_t rows
        uint64_t cols
        const char *name
        uint64_t stack

    ctypedef enum mmrt_roof_kind:
        MMRT_ROOF_READ
        MMRT_ROOF_INT8
        MMRT_ROOF_FLOAT32

    mmrt_status mmrt_roof(mmrt_pool *pool, mmrt_isa isa, mmrt_roof_kind kind, const void *data,
                          uint64_t n, uint64_t *done, mmrt_error *err) nogil
    mmrt_status mmrt_matmul(mmrt_pool *pool, mmrt_isa isa, const mmrt_weight *w, const float *x,
                            size_t n, float *y, mmrt_error *err)
    mmrt_isa mmrt_matmul_isa(mmrt_isa isa, uint32_t type)
    mmrt_status mmrt_quantize(mmrt_pool *pool, const mmrt_weight *w, uint64_t first,
                              uint64_t n_rows, uint32_t type, void *blocks, mmrt_error *err)

    # ---- sampling ----
    ctypedef struct mmrt_sampling:
        double temperature
        uint32_t top_k
        double top_p
        double min_p
        double repeat_penalty
        double presence_penalty
        double frequency_penalty

    ctypedef struct mmrt_alternative:
        int32_t token
        float logprob

    ctypedef struct mmrt_bias:
        int32_t token
        float bias

    ctypedef struct mmrt_draw:
        mmrt_sampling sampling
        const float *logits
        const uint32_t *mask
        const int32_t *recent
        size_t n_recent
        const mmrt_bias *biases
        size_t n_biases
        double uniform
        bool_t wants_logprob
        size_t n_alternatives
        mmrt_alternative *alternatives
        int32_t token
        float logprob

    mmrt_status mmrt_sample(mmrt_pool *pool, mmrt_isa isa, mmrt_draw *draws, size_t n_draws,
                            size_t vocabulary, mmrt_error *err)
    mmrt_status mmrt_distribution(mmrt_isa isa, const mmrt_draw *draw, size_t vocabulary,
                                  int32_t *tokens, float *probabilities, size_t *n,
                                  mmrt_error *err)

    # ---- state of sequences ----
    ctypedef enum mmrt_state_kind:
        MMRT_STATE_NOTHING
        MMRT_STATE_PAGES
        MMRT_STATE_PAGES_OF_LAYER
        MMRT_STATE_BLOCK

    ctypedef struct mmrt_layer_state:
        mmrt_state_kind kind
        uint32_t n_heads
        uint32_t k_dim
        uint32_t v_dim
        bool_t v_in_keys
        uint32_t k_type
        uint32_t v_type
        uint32_t window
        uint32_t layer
        uint64_t block_bytes

    uint32_t mmrt_key_room(const mmrt_layer_state *layer)
    bool_t mmrt_heads_are_apart(const mmrt_layer_state *layer)

    ctypedef struct mmrt_state_store:
        pass

    mmrt_status mmrt_state_store_create(const mmrt_layer_state *layers, uint32_t n_layers,
                                        mmrt_state_store **out, mmrt_error *err)
    void mmrt_state_store_free(mmrt_state_store *store)
    uint64_t mmrt_state_store_bytes(mmrt_state_store *store)
    uint64_t mmrt_state_page_bytes(const mmrt_state_store *store)
    uint64_t mmrt_state_block_bytes(const mmrt_state_store *store)
    uint64_t mmrt_state_store_mapped_bytes(mmrt_state_store *store)
    uint64_t mmrt_state_saved_bytes(const mmrt_state_store *store)

    ctypedef struct mmrt_state_sharing:
        uint64_t held
        uint64_t logical
        uint64_t copies

    void mmrt_state_store_sharing(mmrt_state_store *store, mmrt_state_sharing *sharing)

    ctypedef struct mmrt_state:
        pass

    mmrt_status mmrt_state_create(mmrt_state_store *store, mmrt_state **out, mmrt_error *err)
    void mmrt_state_free(mmrt_state *state)
    uint64_t mmrt_state_length(const mmrt_state *state)
    uint64_t mmrt_state_bytes(const mmrt_state *state)
    uint64_t mmrt_state_shared_bytes(const mmrt_state *state)

    ctypedef struct mmrt_page_held:
        uint64_t number
        uint32_t holders

    uint64_t mmrt_state_page_table(const mmrt_state *state, mmrt_page_held *pages, uint64_t most)
    uint64_t mmrt_state_mapped_bytes(const mmrt_state *state)
    uint64_t mmrt_state_growth(const mmrt_state *state, uint64_t length, bool_t each)
    mmrt_status mmrt_state_fork(const mmrt_state *state, mmrt_state **out, mmrt_error *err)
    uint64_t mmrt_state_rewind(mmrt_state *state, uint64_t length)
    void mmrt_state_trim(mmrt_state *state)
    uint64_t mmrt_state_reach(const mmrt_state *state, uint64_t length)
    mmrt_status mmrt_state_checkpoint(mmrt_state *state, mmrt_error *err)
    uint64_t mmrt_state_checkpoints(const mmrt_state *state, uint64_t *lengths, uint64_t most)
    void mmrt_state_forget(mmrt_state *state, uint64_t length)
    mmrt_status mmrt_state_adopt(mmrt_state *state, const mmrt_state *other, mmrt_error *err)

    enum: MMRT_SAVED_TOKENS

    mmrt_status mmrt_state_save(const mmrt_state *state, uint64_t first, uint64_t n, int fd,
                                uint64_t offset, uint64_t *sum, mmrt_error *err) nogil
    mmrt_status mmrt_state_attach(mmrt_state *state, const char *path, uint64_t offset, uint64_t n,
                                  bool_t with_block, uint64_t sum, mmrt_error *err) nogil
    mmrt_status mmrt_state_check(const mmrt_state *state, mmrt_error *err)

    # ---- programs ----
    ctypedef struct mmrt_program:
        pass

    ctypedef struct mmrt_op:
        int32_t weights[3]
        int32_t biases[3]
        float scales[3]
        int32_t stack_scales[3]

    mmrt_status mmrt_op_init(const char *kind, mmrt_op *op, mmrt_error *err)
    mmrt_status mmrt_op_set(mmrt_op *op, const char *field, double value, mmrt_error *err)
    mmrt_status mmrt_program_create(mmrt_isa isa, uint32_t max_tokens, mmrt_state_store *store,
                                    bool_t exact, mmrt_program **out, mmrt_error *err)
    void mmrt_program_free(mmrt_program *program)
    mmrt_status mmrt_program_add_weight(mmrt_program *program, const mmrt_weight *weight,
                                        int32_t *index, mmrt_error *err)
    mmrt_status mmrt_program_add_buffer(mmrt_program *program, uint32_t width, uint32_t per_token,
                                        int32_t *index, mmrt_error *err)
    mmrt_status mmrt_program_add_rope(mmrt_program *program, const double *frequencies,
                                      uint32_t n_pairs, float magnitude, int32_t *index,
                                      mmrt_error *err)
    mmrt_status mmrt_program_add_op(mmrt_program *program, const mmrt_op *op, mmrt_error *err)
    mmrt_status mmrt_program_finish(mmrt_program *program, int n_threads, mmrt_error *err)
    uint64_t mmrt_program_scratch_bytes(const mmrt_program *program, uint32_t n)

    bool_t mmrt_program_shares(const mmrt_program *program, int32_t weight, int n_threads,
                               uint64_t *first_rows)

    ctypedef struct mmrt_mark:
        pass
    # ---- streamed weights ----
    ctypedef enum mmrt_reader:
        MMRT_READER_URING
        MMRT_READER_COUNT

    const char *mmrt_reader_name(mmrt_reader reader)
    mmrt_status mmrt_reader_check(mmrt_reader reader, mmrt_mapping *mapping, mmrt_error *err)
    mmrt_status mmrt_reader_probe(mmrt_reader reader, mmrt_mapping *mapping, uint64_t offset,
                                  uint64_t length, double *bytes_per_second, mmrt_error *err)
    mmrt_status mmrt_program_stream(mmrt_program *program, mmrt_mapping *const *files,
                                    int32_t n_files,
                                    mmrt_error *err)
    mmrt_status mmrt_program_set_reader(mmrt_program *program, mmrt_reader reader, mmrt_error *err)
    mmrt_status mmrt_program_set_budget(mmrt_program *program, uint64_t budget, mmrt_error *err)

    mmrt_status mmrt_program_lock_kept(mmrt_program *program, mmrt_error *err)
    mmrt_status mmrt_program_forget_columns(mmrt_program *program, mmrt_error *err)

    ctypedef enum mmrt_policy:
        MMRT_POLICY_SCORE
        MMRT_POLICY_LRU

    mmrt_status mmrt_program_set_policy(mmrt_program *program, mmrt_policy policy, mmrt_error *err)

    ctypedef struct mmrt_plan:
        uint64_t total
        uint64_t kept
        uint64_t ring
        uint64_t request
        uint64_t experts
        uint64_t chosen
        uint64_t n_experts
        uint64_t cache
        uint64_t slots
        uint64_t rest
        uint64_t columns
        uint64_t least
        uint64_t most

    mmrt_status mmrt_program_plan(const mmrt_program *program, uint64_t budget, mmrt_plan *plan,
                                  uint64_t *kept, mmrt_error *err)

    ctypedef struct mmrt_demand_stats:
        uint64_t wanted
        uint64_t found
        uint64_t read_units
        uint64_t read_bytes
        uint64_t slots
        uint64_t slot_bytes
        double stall_seconds

    ctypedef struct mmrt_stream_stats:
        mmrt_reader reader
        uint64_t steps
        uint64_t kept_bytes
        uint64_t locked_bytes
        uint64_t streamed_bytes
        uint64_t ring_bytes
        uint64_t cache_bytes
        mmrt_demand_stats demand
        uint64_t read_bytes
        uint64_t loaded_bytes
        double stall_seconds
        double busy_seconds
        mmrt_demand_stats columns

    void mmrt_program_stream_stats(const mmrt_program *program, mmrt_stream_stats *stats)
    int32_t mmrt_program_banks(const mmrt_program *program)
    void mmrt_program_bank_stats(const mmrt_program *program, int32_t bank, int32_t *weight,
                                 mmrt_demand_stats *stats)

    ctypedef struct mmrt_part:
        mmrt_state *state
        uint32_t n
        uint32_t n_outputs
        bool_t exact
    enum: MMRT_EXACT_TOKENS
    mmrt_status mmrt_program_run(mmrt_program *program, mmrt_pool *pool, const mmrt_part *parts,
                                 int32_t n_parts,
                                 const int32_t *tokens, const float *rows, float *logits,
                                 mmrt_mark *marks, int32_t n_marks, int32_t *choices,
                                 mmrt_poll_fn *poll, void *poll_context, mmrt_error *err) nogil


cdef extern from "quant/quant.h" nogil:
    # ---- tensor types ----
    ctypedef void mmrt_unpack_fn(const void *blocks, float *out, size_t n_elements)
    ctypedef void mmrt_pack_fn(const float *values, void *blocks, size_t n_elements)

    cdef struct mmrt_format:
        const char *name
        uint32_t id
        uint32_t elements
        uint32_t bytes
        mmrt_unpack_fn *unpack
        mmrt_pack_fn *pack

    const mmrt_format *mmrt_format_find(uint32_t id)
