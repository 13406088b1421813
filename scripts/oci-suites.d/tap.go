// Package tap writes results in the Test Anything Protocol (https://testanything.org): as much of it as the validation programs of
// runtime-tools call, under the import path that they use, since Debian has no package of that library.
package tap

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// T numbers the results of one program and writes them to Writer, which is the standard output unless set.
type T struct {
	Writer io.Writer
	count  *int
	remark string
}

// New returns a T whose results are counted from one.
func New() *T { return &T{count: new(int)} }

func (t *T) printf(format string, args ...any) {
	writer := t.Writer
	if writer == nil {
		writer = os.Stdout
	}
	fmt.Fprintf(writer, format, args...)
}

// Header writes the version and, if count is positive, the plan: how many results are to come.
func (t *T) Header(count int) {
	t.printf("TAP version 13\n")
	if count > 0 {
		t.printf("1..%d\n", count)
	}
}

// AutoPlan writes the plan after the results: as many as there were.
func (t *T) AutoPlan() { t.printf("1..%d\n", *t.count) }

// Ok writes a result.
func (t *T) Ok(passed bool, description string) {
	word := "ok"
	if !passed {
		word = "not ok"
	}
	(*t.count)++
	t.printf("%s %d - %s%s\n", word, *t.count, description, t.remark)
}

// Todo returns a T whose results count as not yet required: who reads them takes no failure among them for one.
func (t *T) Todo() *T { return &T{Writer: t.Writer, count: t.count, remark: " # TODO"} }

// Pass writes the result of something that is as it should be.
func (t *T) Pass(description string) { t.Ok(true, description) }

// Fail writes the result of something that is not.
func (t *T) Fail(description string) { t.Ok(false, description) }

// Skip writes count results that were not looked for.
func (t *T) Skip(count int, description string) {
	for i := 0; i < count; i++ {
		(*t.count)++
		t.printf("ok %d # SKIP %s\n", *t.count, description)
	}
}

// Diagnostic writes a message, each line as a comment.
func (t *T) Diagnostic(message string) {
	t.printf("# %s\n", strings.ReplaceAll(strings.TrimRight(message, "\n"), "\n", "\n# "))
}

// Diagnosticf formats a message and writes it like Diagnostic.
func (t *T) Diagnosticf(format string, args ...any) { t.Diagnostic(fmt.Sprintf(format, args...)) }

// YAML writes details of the result before it. Any JSON is YAML, too.
func (t *T) YAML(details any) error {
	text, err := json.MarshalIndent(details, "  ", "  ")
	if err != nil {
		return err
	}
	t.printf("  ---\n  %s\n  ...\n", text)
	return nil
}
