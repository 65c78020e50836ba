/* A stand-in for NVIDIA's libnvidia-ml.so.1, for machines without a GPU.
 *
 * It answers from the file "scenario" that lies beside the library and is looked at in every call, so that a
 * test changes the machine while the driver is in use.  Names, layouts, version suffixes and error codes are
 * NVML's, as the package nvidia-ml-py expects them.  Built with -DOLD_DRIVER it lacks what drivers before
 * R510 lack.  tests/nvml/scenario.py writes the file and says what its lines mean.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, TIMEOUT = 10, VERSION_MISMATCH = 25, UNKNOWN = 999
};
enum { GPUS = 16, SLOTS = 8, PROCESSES = 64, SAMPLES = 512, RULES = 64, EVENTS = 64, LINKS = 18, TEXT = 96 };
#define MIB (1024ull * 1024ull)
#define ABSENT (-1)

typedef struct { char function[TEXT]; int code; int hang; } rule_t;
typedef struct { unsigned pid; long memory; unsigned sm; unsigned gi, ci; int mps; } process_t;
typedef struct {
    int there; char uuid[TEXT], profile[TEXT];
    unsigned gi, ci, compute, start, size; long memory, used; double use;
} instance_t;
typedef struct {
    char uuid[TEXT], name[TEXT], bus[TEXT];
    long memory, used, reserved; int major, minor;
    int rates, rates_memory, power, temperature, recovery, pending, gpm, mig, mig_pending, slices, live;
    long long ecc; int remapped[4], has_remapped;
    int topology[GPUS]; char links[LINKS][TEXT];
    process_t processes[PROCESSES]; int process_count;
    struct { unsigned long long at; unsigned value; } samples[SAMPLES]; int sample_count;
    instance_t instances[SLOTS];
    rule_t rules[RULES]; int rule_count;
} gpu_t;
typedef struct { unsigned long seq; int gpu; unsigned long long type, data; unsigned gi, ci; } event_t;
typedef struct { unsigned long seen; int registered[GPUS]; } event_set_t;
typedef struct { double at, use; int valid; } gpm_sample_t;

static struct {
    char driver[TEXT]; int init, root, gpu_count, rule_count, event_count;
    gpu_t gpus[GPUS]; rule_t rules[RULES]; event_t events[EVENTS];
} now;
static int initialised;

/* --- the scenario --------------------------------------------------------------------------------- */

static void add_rule(const char *line, int hang)
{
    gpu_t *gpu = now.gpu_count ? &now.gpus[now.gpu_count - 1] : NULL;
    int *count = gpu ? &gpu->rule_count : &now.rule_count;
    rule_t *rule = &(gpu ? gpu->rules : now.rules)[*count];
    if (*count == RULES || sscanf(line, "%95s %d", rule->function, &rule->code) < 1) return;
    rule->hang = hang;
    (*count)++;
}

static void add_gpu(const char *line)
{
    if (now.gpu_count == GPUS) return;
    gpu_t *gpu = &now.gpus[now.gpu_count++];
    memset(gpu, 0, sizeof *gpu);
    sscanf(line, "%95s", gpu->uuid);
    gpu->rates = gpu->power = gpu->temperature = gpu->recovery = gpu->pending = gpu->mig = ABSENT;
    gpu->ecc = ABSENT;
    for (int i = 0; i < GPUS; i++) gpu->topology[i] = ABSENT;
}

static void add_instance(gpu_t *gpu, const char *line)
{
    int slot;
    instance_t one = {.there = 1};
    if (sscanf(line, "%d %95s %95s %u %u %ld %ld %u %u %u %lf", &slot, one.uuid, one.profile, &one.gi, &one.ci,
               &one.memory, &one.used, &one.compute, &one.start, &one.size, &one.use) == 11 && slot < SLOTS)
        gpu->instances[slot] = one;
}

static void add_process(gpu_t *gpu, const char *line, int mps)
{
    process_t one = {.gi = ~0u, .ci = ~0u, .mps = mps};
    if (gpu->process_count < PROCESSES
        && sscanf(line, "%u %ld %u %u %u", &one.pid, &one.memory, &one.sm, &one.gi, &one.ci) >= 3)
        gpu->processes[gpu->process_count++] = one;
}

static void read_gpu_line(gpu_t *gpu, const char *word, const char *rest)
{
    int a, b;
    char text[TEXT];
    if (!strcmp(word, "name")) snprintf(gpu->name, TEXT, "%s", rest);
    else if (!strcmp(word, "bus")) sscanf(rest, "%95s", gpu->bus);
    else if (!strcmp(word, "memory")) sscanf(rest, "%ld %ld %ld", &gpu->memory, &gpu->used, &gpu->reserved);
    else if (!strcmp(word, "capability")) sscanf(rest, "%d %d", &gpu->major, &gpu->minor);
    else if (!strcmp(word, "rates")) sscanf(rest, "%d %d", &gpu->rates, &gpu->rates_memory);
    else if (!strcmp(word, "live")) sscanf(rest, "%d", &gpu->live);
    else if (!strcmp(word, "power")) sscanf(rest, "%d", &gpu->power);
    else if (!strcmp(word, "temperature")) sscanf(rest, "%d", &gpu->temperature);
    else if (!strcmp(word, "ecc")) sscanf(rest, "%lld", &gpu->ecc);
    else if (!strcmp(word, "recovery")) sscanf(rest, "%d", &gpu->recovery);
    else if (!strcmp(word, "retired")) sscanf(rest, "%d", &gpu->pending);
    else if (!strcmp(word, "gpm")) sscanf(rest, "%d", &gpu->gpm);
    else if (!strcmp(word, "mig")) sscanf(rest, "%d %d", &gpu->mig, &gpu->mig_pending);
    else if (!strcmp(word, "slices")) sscanf(rest, "%d", &gpu->slices);
    else if (!strcmp(word, "process")) add_process(gpu, rest, 0);
    else if (!strcmp(word, "mps")) add_process(gpu, rest, 1);
    else if (!strcmp(word, "instance")) add_instance(gpu, rest);
    else if (!strcmp(word, "topology") && sscanf(rest, "%d %d", &a, &b) == 2 && a < GPUS) gpu->topology[a] = b;
    else if (!strcmp(word, "link") && sscanf(rest, "%d %95s", &a, text) == 2 && a < LINKS)
        snprintf(gpu->links[a], TEXT, "%s", text);
    else if (!strcmp(word, "remapped"))
        gpu->has_remapped = sscanf(rest, "%d %d %d %d", gpu->remapped, gpu->remapped + 1, gpu->remapped + 2,
                                   gpu->remapped + 3) == 4;
    else if (!strcmp(word, "sample") && gpu->sample_count < SAMPLES
             && sscanf(rest, "%llu %u", &gpu->samples[gpu->sample_count].at,
                       &gpu->samples[gpu->sample_count].value) == 2)
        gpu->sample_count++;
}

static void read_line(char *line)
{
    char word[TEXT];
    int end = 0;
    line[strcspn(line, "\n")] = 0;
    if (sscanf(line, "%95s %n", word, &end) != 1) return;
    const char *rest = line + end;
    if (!strcmp(word, "driver")) sscanf(rest, "%95s", now.driver);
    else if (!strcmp(word, "init")) sscanf(rest, "%d", &now.init);
    else if (!strcmp(word, "root")) sscanf(rest, "%d", &now.root);
    else if (!strcmp(word, "fail")) add_rule(rest, 0);
    else if (!strcmp(word, "hang")) add_rule(rest, 1);
    else if (!strcmp(word, "gpu")) add_gpu(rest);
    else if (!strcmp(word, "event") && now.event_count < EVENTS) {
        event_t *e = &now.events[now.event_count];
        now.event_count += sscanf(rest, "%lu %d %llu %llu %u %u", &e->seq, &e->gpu, &e->type, &e->data, &e->gi,
                                  &e->ci) == 6;
    } else if (now.gpu_count) read_gpu_line(&now.gpus[now.gpu_count - 1], word, rest);
}

static void look(void)
{
    static char path[4096];
    static struct stat last;
    struct stat found;
    Dl_info self;
    if (!*path && dladdr((void *)look, &self)) {
        snprintf(path, sizeof path, "%s", self.dli_fname);
        char *slash = strrchr(path, '/');
        snprintf(slash ? slash + 1 : path, 16, "scenario");
    }
    if (stat(path, &found) || (found.st_ino == last.st_ino && found.st_size == last.st_size
                               && !memcmp(&found.st_mtim, &last.st_mtim, sizeof found.st_mtim)))
        return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    char line[512];
    memset(&now, 0, sizeof now);
    while (fgets(line, sizeof line, file)) read_line(line);
    fclose(file);
    last = found;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* --- handles, and what the scenario says of a call ------------------------------------------------ */

typedef void *device_t;
#define PARENT 0x1000
#define CHILD 0x10000

static device_t parent_handle(int index) { return (device_t)(uintptr_t)(PARENT + index); }
static device_t child_handle(int index, int slot) { return (device_t)(uintptr_t)(CHILD + index * SLOTS + slot); }

static gpu_t *gpu_of(device_t device, instance_t **instance)
{
    uintptr_t value = (uintptr_t)device;
    *instance = NULL;
    if (value >= CHILD && value < CHILD + (uintptr_t)now.gpu_count * SLOTS) {
        gpu_t *gpu = &now.gpus[(value - CHILD) / SLOTS];
        *instance = &gpu->instances[(value - CHILD) % SLOTS];
        return (*instance)->there && gpu->mig == 1 ? gpu : NULL;
    }
    return value >= PARENT && value < PARENT + (uintptr_t)now.gpu_count ? &now.gpus[value - PARENT] : NULL;
}

static const rule_t *rule_for(const rule_t *rules, int count, const char *function)
{
    for (int i = 0; i < count; i++)
        if (!strcmp(rules[i].function, "*") || !strcmp(rules[i].function, function)) return &rules[i];
    return NULL;
}

/* Look at the scenario, hang or fail as it says, and find the device of the handle. */
static int enter(const char *function, device_t device, gpu_t **gpu, instance_t **instance)
{
    instance_t *ignored;
    gpu_t *found;
    for (;;) {
        look();
        found = gpu_of(device, instance ? instance : &ignored);
        const rule_t *rule = rule_for(now.rules, now.rule_count, function);
        if (!rule && found) rule = rule_for(found->rules, found->rule_count, function);
        if (!rule) break;
        if (!rule->hang) return rule->code;
        usleep(20000);
    }
    if (!initialised) return UNINITIALIZED;
    if (gpu) *gpu = found;
    return device && !found ? INVALID_ARGUMENT : SUCCESS;
}

#define ENTER(device) \
    gpu_t *gpu = NULL; instance_t *part = NULL; (void)part; \
    int code = enter(__func__, device, &gpu, &part); \
    if (code) return code;
#define ONLY_PARENT if (part) return NOT_SUPPORTED;

static int text(char *to, unsigned length, const char *from)
{
    if (strlen(from) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

/* --- the system ----------------------------------------------------------------------------------- */

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    look();
    const rule_t *rule = rule_for(now.rules, now.rule_count, __func__);
    while (rule && rule->hang) {
        usleep(20000);
        look();
        rule = rule_for(now.rules, now.rule_count, __func__);
    }
    if (rule || now.init) return rule ? rule->code : now.init;
    initialised = 1;
    return SUCCESS;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { initialised = 0; return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the stand-in"; }

int nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    ENTER(NULL)
    return text(version, length, now.driver);
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    ENTER(NULL)
    *count = now.gpu_count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *device)
{
    look();
    if (index >= (unsigned)now.gpu_count) return INVALID_ARGUMENT;
    ENTER(parent_handle(index))
    *device = parent_handle(index);
    return SUCCESS;
}

/* --- what a device is ----------------------------------------------------------------------------- */

int nvmlDeviceGetUUID(device_t device, char *uuid, unsigned length)
{
    ENTER(device)
    return text(uuid, length, part ? part->uuid : gpu->uuid);
}

int nvmlDeviceGetName(device_t device, char *name, unsigned length)
{
    ENTER(device)
    char whole[2 * TEXT + 8];
    snprintf(whole, sizeof whole, part ? "%s MIG %s" : "%s", gpu->name, part ? part->profile : "");
    return text(name, length, whole);
}

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;

int nvmlDeviceGetMemoryInfo(device_t device, memory_t *memory)
{
    ENTER(device)
    long total = part ? part->memory : gpu->memory, used = part ? part->used : gpu->used + gpu->reserved;
    *memory = (memory_t){total * MIB, (total - used) * MIB, used * MIB};
    return SUCCESS;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(device_t device, memory_v2_t *memory)
{
    ENTER(device)
    if (memory->version != (sizeof *memory | 2 << 24)) return VERSION_MISMATCH;
    long total = part ? part->memory : gpu->memory, used = part ? part->used : gpu->used;
    long reserved = part ? 0 : gpu->reserved;
    memory->total = total * MIB;
    memory->reserved = reserved * MIB;
    memory->used = used * MIB;
    memory->free = (total - used - reserved) * MIB;
    return SUCCESS;
}

#endif

int nvmlDeviceGetCudaComputeCapability(device_t device, int *major, int *minor)
{
    ENTER(device)
    *major = gpu->major;
    *minor = gpu->minor;
    return SUCCESS;
}

typedef struct {
    char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32];
} pci_t;

int nvmlDeviceGetPciInfo_v3(device_t device, pci_t *pci)
{
    ENTER(device)
    memset(pci, 0, sizeof *pci);
    sscanf(gpu->bus, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
    return text(pci->bus_id, sizeof pci->bus_id, gpu->bus);
}

int nvmlDeviceGetTopologyCommonAncestor(device_t one, device_t other, unsigned *level)
{
    ENTER(one)
    int found = gpu->topology[(uintptr_t)other - PARENT];
    if (found == ABSENT) return NOT_SUPPORTED;
    *level = found;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkState(device_t device, unsigned link, unsigned *active)
{
    ENTER(device)
    if (link >= LINKS || !*gpu->links[0]) return link >= LINKS ? INVALID_ARGUMENT : NOT_SUPPORTED;
    *active = *gpu->links[link] != 0;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(device_t device, unsigned link, pci_t *pci)
{
    ENTER(device)
    if (link >= LINKS || !*gpu->links[link]) return NOT_SUPPORTED;
    memset(pci, 0, sizeof *pci);
    return text(pci->bus_id, sizeof pci->bus_id, gpu->links[link]);
}

int nvmlDeviceGetNvLinkRemoteDeviceType(device_t device, unsigned link, unsigned *type)
{
    ENTER(device)
    if (link >= LINKS || !*gpu->links[link]) return NOT_SUPPORTED;
    *type = strcmp(gpu->links[link], "switch") ? 0 : 2;
    return SUCCESS;
}

/* --- MIG ------------------------------------------------------------------------------------------ */

int nvmlDeviceGetMigMode(device_t device, unsigned *current, unsigned *pending)
{
    ENTER(device)
    if (gpu->mig == ABSENT) return NOT_SUPPORTED;
    *current = gpu->mig;
    *pending = gpu->mig_pending;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t device, unsigned *count)
{
    ENTER(device)
    *count = gpu->mig == ABSENT ? 0 : SLOTS;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device_t device, unsigned index, device_t *child)
{
    ENTER(device)
    if (gpu->mig != 1) return NOT_SUPPORTED;
    if (index >= SLOTS) return INVALID_ARGUMENT;
    if (!gpu->instances[index].there) return NOT_FOUND;
    *child = child_handle(gpu - now.gpus, index);
    return SUCCESS;
}

int nvmlDeviceGetGpuInstanceId(device_t device, unsigned *id)
{
    ENTER(device)
    if (!part) return INVALID_ARGUMENT;
    *id = part->gi;
    return SUCCESS;
}

int nvmlDeviceGetComputeInstanceId(device_t device, unsigned *id)
{
    ENTER(device)
    if (!part) return INVALID_ARGUMENT;
    *id = part->ci;
    return SUCCESS;
}

typedef struct { unsigned multiprocessors, engines[5], gpu_slices, compute_slices; unsigned long long memory; } attributes_t;

int nvmlDeviceGetAttributes_v2(device_t device, attributes_t *attributes)
{
    ENTER(device)
    if (!part) return NOT_SUPPORTED;
    *attributes = (attributes_t){.multiprocessors = 14 * part->compute, .gpu_slices = part->compute,
                                 .compute_slices = part->compute, .memory = part->memory};
    return SUCCESS;
}

int nvmlDeviceGetGpuInstanceById(device_t device, unsigned id, instance_t **instance)
{
    ENTER(device)
    if (!now.root) return NO_PERMISSION;
    for (int i = 0; i < SLOTS; i++)
        if (gpu->instances[i].there && gpu->instances[i].gi == id) {
            *instance = &gpu->instances[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

typedef struct { unsigned start, size; } placement_t;
typedef struct { device_t device; unsigned id, profile; placement_t placement; } instance_info_t;

int nvmlGpuInstanceGetInfo(instance_t *instance, instance_info_t *info)
{
    ENTER(NULL)
    *info = (instance_info_t){.id = instance->gi, .placement = {instance->start, instance->size}};
    return SUCCESS;
}

typedef struct { unsigned id, numbers[9]; unsigned long long memory; } profile_t;

int nvmlDeviceGetGpuInstanceProfileInfo(device_t device, unsigned profile, profile_t *info)
{
    ENTER(device)
    if (gpu->mig != 1 || profile != (gpu->slices == 4 ? 3 : 4)) return NOT_SUPPORTED;
    memset(info, 0, sizeof *info);
    info->id = profile;
    return SUCCESS;
}

int nvmlDeviceGetGpuInstancePossiblePlacements_v2(device_t device, unsigned profile, placement_t *places, unsigned *count)
{
    ENTER(device)
    (void)profile;
    if (!now.root) return NO_PERMISSION;
    *count = 1;
    if (places) *places = (placement_t){0, gpu->slices};
    return SUCCESS;
}

/* --- how a device is used ------------------------------------------------------------------------- */

int nvmlDeviceGetUtilizationRates(device_t device, unsigned rates[2])
{
    ENTER(device)
    if (part || gpu->mig == 1 || gpu->rates == ABSENT) return NOT_SUPPORTED;
    rates[0] = gpu->rates;
    rates[1] = gpu->rates_memory;
    return SUCCESS;
}

typedef struct { unsigned long long at; union { double d; unsigned u; unsigned long long l; } value; } sample_t;

int nvmlDeviceGetSamples(device_t device, unsigned kind, unsigned long long since, unsigned *type, unsigned *count,
                         sample_t *samples)
{
    ENTER(device)
    (void)kind;
    if (part || gpu->mig == 1 || gpu->rates == ABSENT) return NOT_SUPPORTED;
    sample_t all[SAMPLES];
    unsigned found = 0;
    for (int i = 0; i < gpu->sample_count; i++)
        if (gpu->samples[i].at > since)
            all[found++] = (sample_t){gpu->samples[i].at, {.u = gpu->samples[i].value}};
    if (gpu->live) { /* one sample every 200 ms, as the rates are now */
        unsigned long long tick = 200000, last = (unsigned long long)(seconds() * 1e6) / tick;
        for (unsigned long long i = last - 50; i <= last; i++)
            if (i * tick > since && found < SAMPLES) all[found++] = (sample_t){i * tick, {.u = gpu->rates}};
    }
    if (!found) return NOT_FOUND;
    *type = 1;
    if (samples) memcpy(samples, all, (found < *count ? found : *count) * sizeof *samples);
    *count = samples && *count < found ? *count : found;
    return SUCCESS;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gi, ci; } process_info_t;

static int list_processes(gpu_t *gpu, instance_t *part, int mps, unsigned *count, process_info_t *infos)
{
    process_info_t all[PROCESSES];
    unsigned found = 0;
    if (!part && gpu->mig == 1 && !now.root) return NO_PERMISSION;
    for (int i = 0; i < gpu->process_count; i++) {
        process_t *one = &gpu->processes[i];
        if (one->mps == mps && (!part || (one->gi == part->gi && one->ci == part->ci)))
            all[found++] = (process_info_t){one->pid, one->memory < 0 ? ~0ull : one->memory * MIB, one->gi, one->ci};
    }
    unsigned room = *count;
    *count = found;
    if (!found) return SUCCESS;
    if (room < found || !infos) return INSUFFICIENT_SIZE;
    memcpy(infos, all, found * sizeof *infos);
    return SUCCESS;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(device_t device, unsigned *count, process_info_t *infos)
{
    ENTER(device)
    return list_processes(gpu, part, 0, count, infos);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(device_t device, unsigned *count, process_info_t *infos)
{
    ENTER(device)
    return list_processes(gpu, part, 1, count, infos);
}
#endif

int nvmlDeviceGetComputeRunningProcesses_v2(device_t device, unsigned *count, process_info_t *infos)
{
    ENTER(device)
    return list_processes(gpu, part, 0, count, infos);
}

typedef struct { unsigned pid; unsigned long long at; unsigned sm, memory, encoder, decoder; } use_t;

int nvmlDeviceGetProcessUtilization(device_t device, use_t *uses, unsigned *count, unsigned long long since)
{
    ENTER(device)
    (void)since;
    if (part || gpu->mig == 1 || gpu->rates == ABSENT) return NOT_SUPPORTED;
    unsigned found = 0, room = *count;
    for (int i = 0; i < gpu->process_count; i++) {
        process_t *one = &gpu->processes[i];
        if (!one->sm) continue;
        if (uses && found < room) uses[found] = (use_t){.pid = one->pid, .at = seconds() * 1e6, .sm = one->sm};
        found++;
    }
    *count = found;
    if (!found) return NOT_FOUND;
    return uses && room >= found ? SUCCESS : INSUFFICIENT_SIZE;
}

#ifndef OLD_DRIVER
typedef struct { unsigned version, supported; } gpm_support_t;
typedef struct { unsigned id; int code; double value; char *names[3]; } gpm_metric_t;
typedef struct { unsigned version, count; gpm_sample_t *first, *second; gpm_metric_t metrics[]; } gpm_metrics_t;

int nvmlGpmQueryDeviceSupport(device_t device, gpm_support_t *support)
{
    ENTER(device)
    support->supported = gpu->gpm;
    return SUCCESS;
}

int nvmlGpmSampleAlloc(gpm_sample_t **sample)
{
    ENTER(NULL)
    *sample = calloc(1, sizeof **sample);
    return SUCCESS;
}

int nvmlGpmSampleFree(gpm_sample_t *sample) { free(sample); return SUCCESS; }

int nvmlGpmMigSampleGet(device_t device, unsigned gi, gpm_sample_t *sample)
{
    ENTER(device)
    if (!gpu->gpm) return NOT_SUPPORTED;
    for (int i = 0; i < SLOTS; i++)
        if (gpu->instances[i].there && gpu->instances[i].gi == gi) {
            *sample = (gpm_sample_t){seconds(), gpu->instances[i].use, 1};
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlGpmMetricsGet(gpm_metrics_t *metrics)
{
    ENTER(NULL)
    if (metrics->version != 1) return VERSION_MISMATCH;
    if (!metrics->first->valid || !metrics->second->valid) return INVALID_ARGUMENT;
    for (unsigned i = 0; i < metrics->count; i++) {
        int close = metrics->second->at - metrics->first->at < 0.1;
        metrics->metrics[i].code = metrics->metrics[i].id == 1 ? SUCCESS : NOT_SUPPORTED;
        metrics->metrics[i].value = close ? NAN : metrics->second->use;
    }
    return SUCCESS;
}
#endif

int nvmlDeviceGetPowerUsage(device_t device, unsigned *milliwatts)
{
    ENTER(device)
    if (part || gpu->power == ABSENT) return NOT_SUPPORTED;
    *milliwatts = gpu->power;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(device_t device, unsigned sensor, unsigned *degrees)
{
    ENTER(device)
    (void)sensor;
    if (part || gpu->temperature == ABSENT) return NOT_SUPPORTED;
    *degrees = gpu->temperature;
    return SUCCESS;
}

/* --- health --------------------------------------------------------------------------------------- */

int nvmlDeviceGetTotalEccErrors(device_t device, unsigned type, unsigned counter, unsigned long long *count)
{
    ENTER(device)
    (void)counter;
    if (gpu->ecc == ABSENT) return NOT_SUPPORTED;
    *count = type == 1 ? gpu->ecc : 0;
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(device_t device, unsigned *correctable, unsigned *uncorrectable, unsigned *pending,
                              unsigned *failure)
{
    ENTER(device)
    for (int i = 0; i < SLOTS; i++)
        if (gpu->mig == 1 && gpu->instances[i].there) return NOT_SUPPORTED;
    if (!gpu->has_remapped) return NOT_SUPPORTED;
    *correctable = gpu->remapped[0];
    *uncorrectable = gpu->remapped[1];
    *pending = gpu->remapped[2];
    *failure = gpu->remapped[3];
    return SUCCESS;
}

int nvmlDeviceGetRetiredPagesPendingStatus(device_t device, unsigned *pending)
{
    ENTER(device)
    if (gpu->pending == ABSENT) return NOT_SUPPORTED;
    *pending = gpu->pending;
    return SUCCESS;
}

typedef struct {
    uint32_t field, scope; int64_t at, latency; unsigned type; int code;
    union { double d; unsigned u; unsigned long long l; } value;
} field_t;

int nvmlDeviceGetFieldValues(device_t device, int count, field_t *fields)
{
    ENTER(device)
    for (int i = 0; i < count; i++) {
        int known = fields[i].field == 230 && gpu->recovery != ABSENT;
        fields[i].code = known ? SUCCESS : NOT_SUPPORTED;
        fields[i].type = 1;
        if (known) fields[i].value.u = gpu->recovery;
    }
    return SUCCESS;
}

int nvmlEventSetCreate(event_set_t **set)
{
    ENTER(NULL)
    *set = calloc(1, sizeof **set);
    for (int i = 0; i < now.event_count; i++) /* what happened before is not recorded */
        if (now.events[i].seq > (*set)->seen) (*set)->seen = now.events[i].seq;
    return SUCCESS;
}

int nvmlEventSetFree(event_set_t *set) { free(set); return SUCCESS; }

int nvmlDeviceGetSupportedEventTypes(device_t device, unsigned long long *types)
{
    ENTER(device)
    *types = 0x2 | 0x8 | 0x4000 | 0x8000;
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(device_t device, unsigned long long types, event_set_t *set)
{
    ENTER(device)
    if (part || types & ~(0x2ull | 0x8 | 0x4000 | 0x8000)) return NOT_SUPPORTED;
    set->registered[gpu - now.gpus] = 1;
    return SUCCESS;
}

typedef struct { device_t device; unsigned long long type, data; unsigned gi, ci; } event_data_t;

int nvmlEventSetWait_v2(event_set_t *set, event_data_t *data, unsigned timeout)
{
    ENTER(NULL)
    for (double end = seconds() + timeout / 1000.0;; usleep(1000)) {
        look();
        for (int i = 0; i < now.event_count; i++) {
            event_t *e = &now.events[i];
            if (e->seq <= set->seen || e->gpu >= GPUS || !set->registered[e->gpu]) continue;
            set->seen = e->seq;
            *data = (event_data_t){parent_handle(e->gpu), e->type, e->data, e->gi, e->ci};
            return SUCCESS;
        }
        if (seconds() >= end) return TIMEOUT;
    }
}
