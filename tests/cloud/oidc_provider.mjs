// A real OpenID provider (the certified npm package oidc-provider) with clients and keys of a test.
import Provider from "oidc-provider";

const wish = JSON.parse(process.argv[2]);
const provider = new Provider(wish.issuer, {
  jwks: { keys: wish.keys },
  clients: wish.clients,
  scopes: ["openid", "fleet"],
  clientAuthMethods: ["client_secret_basic", "none"],
  enabledJWA: {
    idTokenSigningAlgValues: ["RS256", "ES256", "EdDSA"],
    clientAuthSigningAlgValues: ["RS256"],
  },
  features: {
    devInteractions: { enabled: true },
    clientCredentials: { enabled: true },
    deviceFlow: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => wish.audience,
      useGrantedResource: () => true,
      getResourceServerInfo: (_ctx, resource) => ({
        scope: "fleet",
        audience: resource,
        accessTokenFormat: "jwt",
        accessTokenTTL: wish.life_s,
        jwt: { sign: { alg: wish.alg, kid: wish.kid } },
      }),
    },
  },
  extraTokenClaims: (_ctx, token) => wish.claims[token.clientId] ?? {},
  findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
});
provider.listen(wish.port, "127.0.0.1", () => console.log("ready"));
