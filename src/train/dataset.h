/* What a loader draws rows from: a number of rows, the form of one, and a way to copy some of them out. */
#ifndef WEFTI_DATASET_H
#define WEFTI_DATASET_H

#include "core/base/base.h"
#include "weft/loader.h"

typedef struct wefti_dataset wefti_dataset;
struct wefti_dataset {
    int64_t          rows;
    int32_t          field_count;
    weft_batch_field field[WEFT_BATCH_MAX_FIELDS]; /* dim[0] is 1: the form of one row; data NULL */
    size_t           row_bytes[WEFT_BATCH_MAX_FIELDS];
    /* Copies rows row[0..count) to data_out[field], one behind the other. Called by one thread at a time. */
    weft_status (*fill)(wefti_dataset *dataset, const int64_t *row, int64_t count, void *const *data_out);
    void (*release)(wefti_dataset *dataset);
};

WEFT_MUST_CHECK weft_status wefti_dataset_images(const weft_image_source *source, wefti_dataset **dataset_out);
WEFT_MUST_CHECK weft_status wefti_dataset_text(const weft_text_source *source, wefti_dataset **dataset_out);
WEFT_MUST_CHECK weft_status wefti_dataset_arrays(const weft_batch_field *fields, int32_t count,
                                                 wefti_dataset **dataset_out);

#endif
