/* What memory nodes there are. Machines without NUMA answer as one node. */
#include "map/numa.h"

#include "base/status.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

/* The text of folder/name, cut to what fits; empty where there is no such file, or none for us. */
static mmrt_status read_text(const char *folder, const char *name, char *text, size_t size,
                             mmrt_error *err) {
    char path[512];
    text[0] = 0;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    if (!file && (errno == ENOENT || errno == ENOTDIR || errno == EACCES || errno == EPERM))
        return MMRT_OK;
    if (!file)
        return mmrt_fail_errno(err, "cannot read '%s'", path);
    text[fread(text, 1, size - 1, file)] = 0;
    fclose(file);
    return MMRT_OK;
}

/* A number below MMRT_SET_LIMIT at *text, which moves behind it; -1 if there is none. */
static int parse_number(const char **text) {
    int n = 0;
    if (**text < '0' || **text > '9')
        return -1;
    for (; **text >= '0' && **text <= '9'; (*text)++) {
        n = n * 10 + (**text - '0');
        if (n >= MMRT_SET_LIMIT)
            return -1;
    }
    return n;
}

/* The kernel's way to write a set: "0-3,8,10-11", or nothing, and the end of the line. */
static bool parse_set(const char *text, mmrt_set *out) {
    *out = (mmrt_set){{0}};
    if (!*text || *text == '\n')
        return true;
    for (;; text++) {
        int first = parse_number(&text), last = first;
        if (*text == '-') {
            text++;
            last = parse_number(&text);
        }
        if (first < 0 || last < first)
            return false;
        for (int i = first; i <= last; i++)
            mmrt_set_add(out, i);
        if (*text != ',')
            return !*text || *text == '\n';
    }
}

static mmrt_status read_set(const char *root, const char *name, mmrt_set *out, mmrt_error *err) {
    char text[8192];
    mmrt_status status = read_text(root, name, text, sizeof text, err);
    if (!status && !parse_set(text, out))
        return mmrt_fail(err, MMRT_FORMAT, "%s/%s: '%.*s' is no list of numbers below %d", root,
                         name, (int)strcspn(text, "\n"), text, MMRT_SET_LIMIT);
    return status;
}

/* A figure of meminfo ("Node 0 MemFree:   123 kB") in bytes; 0 where it is not given. */
static uint64_t memory_of(const char *meminfo, const char *key) {
    const char *found = strstr(meminfo, key);
    return found ? (uint64_t)strtoull(found + strlen(key), NULL, 10) * 1024 : 0;
}

static mmrt_status read_node(const char *root, mmrt_numa_node *node, mmrt_error *err) {
    char name[64], text[8192];
    snprintf(name, sizeof name, "node%d/cpulist", node->id);
    mmrt_status status = read_set(root, name, &node->cpus, err);
    snprintf(name, sizeof name, "node%d/meminfo", node->id);
    if (!status)
        status = read_text(root, name, text, sizeof text, err);
    if (status)
        return status;
    node->total = memory_of(text, "MemTotal:");
    node->free = memory_of(text, "MemFree:");
    snprintf(name, sizeof name, "node%d/distance", node->id);
    status = read_text(root, name, text, sizeof text, err);
    char *at = text, *end;
    for (int i = 0; !status && i < MMRT_MAX_NODES; i++, at = end) {
        long distance = strtol(at, &end, 10);
        if (end == at)
            break;
        node->distances[i] = (int)distance;
    }
    return status;
}

static void one_node(mmrt_numa_topology *out) {
    mmrt_numa_node *node = &out->nodes[0];
    struct sysinfo info;
    out->n_nodes = 1;
    node->distances[0] = 10; /* what firmware calls local */
    node->cpus = mmrt_cpu_affinity();
    if (sysinfo(&info) == 0) {
        node->total = (uint64_t)info.totalram * info.mem_unit;
        node->free = (uint64_t)info.freeram * info.mem_unit;
    }
}

mmrt_status mmrt_numa_allowed(mmrt_set *allowed, mmrt_error *err) {
    static const char key[] = "Mems_allowed_list:";
    char text[16384];
    *allowed = (mmrt_set){{0}};
    mmrt_status status = read_text("/proc/self", "status", text, sizeof text, err);
    const char *found = status ? NULL : strstr(text, key);
    if (!found)
        return status;
    found += strlen(key);
    found += strspn(found, " \t");
    if (!parse_set(found, allowed))
        *allowed = (mmrt_set){{0}};
    return MMRT_OK;
}

mmrt_status mmrt_numa_topology_read(const char *root, mmrt_numa_topology *out, mmrt_error *err) {
    const char *folder = root ? root : "/sys/devices/system/node";
    mmrt_set online;
    memset(out, 0, sizeof *out);
    mmrt_status status = read_set(folder, "online", &online, err);
    for (int id = 0; id < MMRT_SET_LIMIT && !status; id++) {
        if (!mmrt_set_has(&online, id))
            continue;
        if (out->n_nodes == MMRT_MAX_NODES)
            return mmrt_fail(err, MMRT_UNSUPPORTED, "%s/online: more than %d nodes", folder,
                             MMRT_MAX_NODES);
        out->nodes[out->n_nodes].id = id;
        status = read_node(folder, &out->nodes[out->n_nodes++], err);
    }
    if (status)
        return status;
    if (out->n_nodes == 0)
        one_node(out);

    for (int i = 0; i < out->n_nodes; i++)
        if (out->nodes[i].total)
            mmrt_set_add(&out->allowed, out->nodes[i].id);
    mmrt_set allowed = {{0}};
    if (!root)
        status = mmrt_numa_allowed(&allowed, err);
    if (mmrt_set_count(&allowed))
        out->allowed = mmrt_set_both(&out->allowed, &allowed);
    return status;
}
