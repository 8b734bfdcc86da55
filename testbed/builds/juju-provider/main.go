// A stand-in for Juju's Terraform provider that knows what its two resources take, and can do nothing else.
//
// The schema is that of the provider's documentation, version 2.3 (1.x has the same for these two):
// https://documentation.ubuntu.com/terraform-provider-juju/latest/reference/terraform-provider/resources/application/
// https://documentation.ubuntu.com/terraform-provider-juju/latest/reference/terraform-provider/resources/integration/
// With it `tofu validate` and `tofu plan` judge deploy/terraform: names, types, what is required. What Juju's own
// provider checks beyond that, and everything that is done with a controller, is not here.
package main

import (
	"context"
	"log"

	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	providerschema "github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

func main() {
	address := providerserver.ServeOpts{Address: "registry.opentofu.org/juju/juju"}
	if err := providerserver.Serve(context.Background(), func() provider.Provider { return &juju{} }, address); err != nil {
		log.Fatal(err)
	}
}

type juju struct{}

func (*juju) Metadata(_ context.Context, _ provider.MetadataRequest, response *provider.MetadataResponse) {
	response.TypeName = "juju"
}

func (*juju) Schema(_ context.Context, _ provider.SchemaRequest, response *provider.SchemaResponse) {
	response.Schema = providerschema.Schema{}
}

func (*juju) Configure(context.Context, provider.ConfigureRequest, *provider.ConfigureResponse) {}

func (*juju) DataSources(context.Context) []func() datasource.DataSource { return nil }

func (*juju) Resources(context.Context) []func() resource.Resource {
	return []func() resource.Resource{
		func() resource.Resource { return &described{"juju_application", application} },
		func() resource.Resource { return &described{"juju_integration", integration} },
	}
}

// described is a resource that has a schema; nothing can be done with it.
type described struct {
	name   string
	schema schema.Schema
}

func (one *described) Metadata(_ context.Context, _ resource.MetadataRequest, response *resource.MetadataResponse) {
	response.TypeName = one.name
}

func (one *described) Schema(_ context.Context, _ resource.SchemaRequest, response *resource.SchemaResponse) {
	response.Schema = one.schema
}

func (*described) Create(_ context.Context, _ resource.CreateRequest, response *resource.CreateResponse) {
	refuse(&response.Diagnostics)
}

func (*described) Read(_ context.Context, _ resource.ReadRequest, response *resource.ReadResponse) {
	refuse(&response.Diagnostics)
}

func (*described) Update(_ context.Context, _ resource.UpdateRequest, response *resource.UpdateResponse) {
	refuse(&response.Diagnostics)
}

func (*described) Delete(_ context.Context, _ resource.DeleteRequest, response *resource.DeleteResponse) {
	refuse(&response.Diagnostics)
}

func refuse(diagnostics *diag.Diagnostics) {
	diagnostics.AddError("this is a stand-in", "It has the schema of Juju's provider and no way to a controller.")
}

func required() schema.StringAttribute { return schema.StringAttribute{Required: true} }
func optional() schema.StringAttribute { return schema.StringAttribute{Optional: true} }
func filledIn() schema.StringAttribute { return schema.StringAttribute{Optional: true, Computed: true} }
func told() schema.StringAttribute     { return schema.StringAttribute{Computed: true} }

var application = schema.Schema{
	Attributes: map[string]schema.Attribute{
		"model_uuid":  required(),
		"config":      schema.MapAttribute{Optional: true, ElementType: types.StringType},
		"constraints": filledIn(),
		"endpoint_bindings": schema.SetNestedAttribute{Optional: true, NestedObject: schema.NestedAttributeObject{
			Attributes: map[string]schema.Attribute{"space": required(), "endpoint": optional()},
		}},
		"machines": schema.SetAttribute{Optional: true, Computed: true, ElementType: types.StringType},
		"name":     filledIn(),
		"registry_credentials": schema.MapNestedAttribute{Optional: true, NestedObject: schema.NestedAttributeObject{
			Attributes: map[string]schema.Attribute{
				"username": required(),
				"password": schema.StringAttribute{Required: true, Sensitive: true},
			},
		}},
		"resources":          schema.MapAttribute{Optional: true, ElementType: types.StringType},
		"storage_directives": schema.MapAttribute{Optional: true, ElementType: types.StringType},
		"trust":              schema.BoolAttribute{Optional: true, Computed: true},
		"units":              schema.Int64Attribute{Optional: true, Computed: true},
		"id":                 told(),
		"model_type":         told(),
		"storage": schema.SetNestedAttribute{Computed: true, NestedObject: schema.NestedAttributeObject{
			Attributes: map[string]schema.Attribute{
				"count": schema.Int64Attribute{Computed: true}, "label": told(), "pool": told(), "size": told(),
			},
		}},
	},
	Blocks: map[string]schema.Block{
		"charm": schema.ListNestedBlock{NestedObject: schema.NestedBlockObject{
			Attributes: map[string]schema.Attribute{
				"name":     required(),
				"base":     filledIn(),
				"channel":  filledIn(),
				"revision": schema.Int64Attribute{Optional: true, Computed: true},
			},
		}},
		"expose": schema.ListNestedBlock{NestedObject: schema.NestedBlockObject{
			Attributes: map[string]schema.Attribute{"cidrs": optional(), "endpoints": optional(), "spaces": optional()},
		}},
	},
}

var integration = schema.Schema{
	Attributes: map[string]schema.Attribute{"model_uuid": required(), "via": optional(), "id": told()},
	Blocks: map[string]schema.Block{
		"application": schema.SetNestedBlock{NestedObject: schema.NestedBlockObject{
			Attributes: map[string]schema.Attribute{"name": filledIn(), "endpoint": filledIn(), "offer_url": filledIn()},
		}},
	},
}
