/* The cgroups around this process. */
#include "mmrt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 8192 };

/* Whether `word` is in a list separated by commas. */
static bool has_word(const char *list, const char *word) {
    const size_t length = strlen(word);
    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, word, length) == 0 && (at[length] == ',' || !at[length]))
            return true;
    }
    return false;
}

/* The path of the process' group, as the list `groups` has it; false if it is in none. */
static bool find_group(const char *groups, const char *controller, int version, char path[LINE]) {
    FILE *file = fopen(groups, "re");
    char line[LINE];
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file)) {
        char *controllers = strchr(line, ':'); /* number:controllers:path */
        char *at = controllers ? strchr(++controllers, ':') : NULL;
        if (!at)
            continue;
        *at++ = '\0';
        at[strcspn(at, "\n")] = '\0';
        found = version == 2 ? !*controllers : has_word(controllers, controller);
        if (found)
            strcpy(path, at);
    }
    if (file)
        fclose(file);
    return found;
}

/* Blanks and the like are octal numbers in lists of mounts. */
static void unescape(char *text) {
    char *to = text;
    for (; *text; to++)
        if (text[0] == '\\' && text[1] && text[2] && text[3]) {
            *to = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
            text += 4;
        } else {
            *to = *text++;
        }
    *to = '\0';
}

/* The rest of `path` after `root`; NULL if it is not below `root`. */
static const char *below(const char *path, const char *root) {
    const size_t length = strcmp(root, "/") == 0 ? 0 : strlen(root);
    if (strncmp(path, root, length) != 0 || (path[length] && path[length] != '/'))
        return NULL;
    return strcmp(path + length, "/") == 0 ? "" : path + length;
}

bool mmrt_cgroup_find(const char *controller, int version, const char *groups, const char *mounts,
                      mmrt_cgroup *out) {
    char path[LINE], line[LINE], root[LINE], point[LINE];
    if (!find_group(groups, controller, version, path))
        return false;
    FILE *file = fopen(mounts, "re");
    bool found = false, exact = false;
    while (file && !exact && fgets(line, sizeof line, file)) {
        /* number parent device root point options ... - type source options */
        char *rest = strstr(line, " - ");
        char type[16], options[LINE];
        if (!rest || sscanf(line, "%*s %*s %*s %8191s %8191s", root, point) != 2 ||
            sscanf(rest, " - %15s %*s %8191s", type, options) != 2)
            continue;
        if (strcmp(type, version == 2 ? "cgroup2" : "cgroup") != 0 ||
            (version == 1 && !has_word(options, controller)))
            continue;
        unescape(root);
        unescape(point);
        /* Seen from a container, a group may lie outside of what is mounted: its top is what there
         * is to see. */
        const char *inner = below(path, root);
        exact = inner != NULL;
        const int length = snprintf(out->path, sizeof out->path, "%s%s", point, exact ? inner : "");
        found = length < (int)sizeof out->path;
        out->top = strlen(point);
    }
    if (file)
        fclose(file);
    return found;
}

bool mmrt_cgroup_up(mmrt_cgroup *group) {
    char *end = strrchr(group->path, '/');
    if (!end || (size_t)(end - group->path) < group->top)
        return false;
    *end = '\0';
    return true;
}

static bool read_numbers(const mmrt_cgroup *group, const char *name, double *one, double *other) {
    char path[sizeof group->path + 64];
    snprintf(path, sizeof path, "%s/%s", group->path, name);
    FILE *file = fopen(path, "re");
    const int n = file ? fscanf(file, "%lf %lf", one, other) : 0; /* "max" is no number */
    if (file)
        fclose(file);
    return n >= 1;
}

double mmrt_cgroup_cpus(const char *groups, const char *mounts) {
    double least = 0;
    for (int version = 1; version <= 2; version++) {
        mmrt_cgroup group;
        if (!mmrt_cgroup_find("cpu", version, groups, mounts, &group))
            continue;
        do {
            double quota = 0, period = 0;
            const bool limited =
                version == 2 ? read_numbers(&group, "cpu.max", &quota, &period)
                             : read_numbers(&group, "cpu.cfs_quota_us", &quota, &period) &&
                                   read_numbers(&group, "cpu.cfs_period_us", &period, &period);
            if (limited && quota > 0 && period > 0 && (!least || quota / period < least))
                least = quota / period;
        } while (mmrt_cgroup_up(&group));
    }
    return least;
}
