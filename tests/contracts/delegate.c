/* An external delegate of TFLite that takes no operator: it shows that the adapter loads one, hands
   its options on, lets it look at the graph, and lets it go. ABI: tensorflow/lite/core/c/common.h. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct Delegate {
  void *data;
  int (*prepare)(void *context, struct Delegate *delegate);
  void *copy_from, *copy_to, *free_handle;
  int64_t flags;
  void *builder;
} Delegate;

int prepared, destroyed;
char device[64];

static int prepare(void *context, Delegate *delegate) {
  (void)context, (void)delegate;
  prepared++;
  return 0;
}

Delegate *tflite_plugin_create_delegate(const char *const *keys, const char *const *values,
                                        size_t count, void (*report)(const char *)) {
  for (size_t i = 0; i < count; i++) {
    if (!strcmp(keys[i], "device")) strncpy(device, values[i], sizeof device - 1);
  }
  if (!strcmp(device, "none")) {
    report("no such device is plugged in");
    return NULL;
  }
  Delegate *made = calloc(1, sizeof *made);
  made->prepare = prepare;
  return made;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) {
  destroyed++;
  free(delegate);
}
