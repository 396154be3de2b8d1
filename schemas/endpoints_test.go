package schemas_test

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/audit"
	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/commands/receipts"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections/checkpoint"
)

// TestOpenAPIMembers: each body that an endpoint reads or writes has exactly the
// members that the document says.
func TestOpenAPIMembers(t *testing.T) {
	components := openapi(t)["components"].(map[string]any)["schemas"].(map[string]any)
	for name, v := range map[string]any{
		"RevokeKeys": commands.RevokeMany{}, "RevokeResult": commands.RevokeResult{}, "ImportKeys": commands.Import{}, "ImportKey": commands.ImportKey{}, "ImportResult": commands.ImportResult{},
		"CreateKey": commands.Create{}, "PatchKey": commands.Patch{}, "AssignScopes": commands.AssignScopes{},
		"AssignResources": commands.AssignResources{}, "SetAllowlist": commands.SetAllowlist{}, "SetLimit": commands.SetLimit{},
		"Why": commands.Disable{}, "Revoke": commands.Revoke{}, "Rotate": commands.Rotate{},
		"DefineKeyspace": commands.DefineKeyspace{}, "Definition": keyspace.Definition{}, "DefineRole": commands.DefineRole{},
		"Permissions": commands.Permissions{}, "SetTenantLimit": commands.SetTenantLimit{}, "Tenant": commands.TenantView{}, "EffectiveLimit": commands.EffectiveLimit{},
		"SecretPattern": commands.SecretPattern{}, "Violation": commands.Violation{},
		"Key": commands.KeyView{}, "Node": commands.NodeView{}, "Receipt": commands.ReceiptView{}, "ReceiptNode": receipts.Node{}, "KeyspaceView": commands.KeyspaceView{}, "Role": commands.RoleView{},
		"Event": api.EventView{}, "Use": audit.UseView{}, "Usage": audit.UsageView{}, "Watermark": audit.Watermark{}, "Gaps": events.Gaps{}, "Manifest": audit.ManifestView{}, "CheckpointKeys": checkpoint.KeysView{},
		"Problem": api.Problem{}, "FieldError": input.FieldError{}, "Resource": events.Resource{}, "Actor": api.ActorView{},
	} {
		got := slices.Sorted(maps.Keys(components[name].(map[string]any)["properties"].(map[string]any)))
		want := members(reflect.TypeOf(v))
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s is described with\n%v\nthe endpoint has\n%v", name, got, want)
		}
	}
}

// members lists the JSON members of a struct, with those of embedded ones.
func members(typ reflect.Type) (out []string) {
	for f := range typ.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			out = append(out, members(f.Type)...)
		case name != "" && name != "-":
			out = append(out, name)
		}
	}
	return out
}
